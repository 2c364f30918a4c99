"""Where runs are executed: here, in a few worker processes on this machine.

Every executor has one seam: a run is a directory, and all state is on disk, so that losing the
launcher loses nothing. A worker (``python -m runners.sweeping.local``) serves one run after
another, which saves the seconds that importing torch takes. It reads orders from its standard
input and writes messages to its standard output, one JSON object a line. When that input ends
without an order to quit, the driver has died, and the worker ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from runners.process import signals
from runners.process.environment import thread_environment
from runners.process.run_directory import RunDirectory
from tasks.base import exit_status

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A run to execute."""

    directory: Path
    num_threads: int


OnMessage = Callable[[Path, dict[str, Any]], None]
"""Gets a run's directory and a message: ``event`` is started, progress or ended."""


# --- the driver's side ------------------------------------------------------------------


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    num_threads: int
    slot: int
    job: Job | None = None
    is_ready: bool = False
    """Whether it has imported what it needs, and hears orders."""
    buffer: bytes = field(default=b"", repr=False)

    def send(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps(order) + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            logger.warning("worker %s has ended before an order", self.process.pid)


class LocalExecutor:
    """Run directories in ``num_workers`` processes of this machine.

    Args:
        num_workers: runs at a time.
        devices: values of CUDA_VISIBLE_DEVICES, dealt out to the workers in turn; empty: left as
            is.
    """

    def __init__(self, num_workers: int, *, devices: Sequence[str] = ()) -> None:
        if num_workers < 1:
            raise ValueError(f"workers={num_workers}: must be at least 1")
        self.num_workers = num_workers
        self.devices = tuple(devices)
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def run(self, jobs: Sequence[Job], *, stop: signals.Stop, on_message: OnMessage) -> None:
        """Execute every job, in order, and return when all have ended.

        A worker that dies takes only its run with it: that run is marked as failed. After
        ``stop.requested`` no job is started, and those under way save and end.

        Args:
            jobs: what to run.
            stop: asked all the time.
            on_message: called with each message; ``{"event": "tick"}`` comes several times a
                second.
        """
        pending = deque(jobs)
        told = False
        try:
            while True:
                if stop.requested and not told:
                    told = True
                    pending.clear()
                    for worker in list(self._workers):
                        self._stop(worker, on_message)
                self._assign(pending, on_message)
                if not any(worker.job for worker in self._workers):
                    break
                self._read(on_message)
                on_message(Path(), {"event": "tick"})
        finally:
            self._end_workers()

    def _assign(self, pending: deque[Job], on_message: OnMessage) -> None:
        while pending:
            idle = [worker for worker in self._workers if worker.job is None]
            fitting = [worker for worker in idle if worker.num_threads == pending[0].num_threads]
            if fitting:
                worker = fitting[0]
            elif len(self._workers) < self.num_workers:
                worker = self._start(pending[0].num_threads)
            elif idle:  # made for another number of threads
                self._quit(idle[0])
                continue
            else:
                return
            worker.job = pending.popleft()
            worker.send({"order": "run", "directory": str(worker.job.directory)})
            on_message(worker.job.directory, {"event": "started"})

    def _start(self, num_threads: int) -> _Worker:
        taken = {worker.slot for worker in self._workers}
        slot = min(set(range(self.num_workers)) - taken)
        variables = thread_environment(num_threads)
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        # A session of its own: Ctrl-C in the terminal reaches the driver alone, which tells its
        # workers; they would otherwise be interrupted twice.
        process = subprocess.Popen(
            [sys.executable, "-m", "runners.sweeping.local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            start_new_session=True,
        )
        worker = _Worker(process, num_threads, slot)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._workers.append(worker)
        return worker

    def _stop(self, worker: _Worker, on_message: OnMessage) -> None:
        """Have a worker save its run and end it; one that has not begun need not begin."""
        if worker.is_ready:
            worker.send({"order": "stop"})
            return
        job = worker.job
        worker.process.kill()
        worker.process.wait()
        self._forget(worker)
        if job is not None:
            on_message(job.directory, {"event": "ended", "status": "stopped"})

    def _read(self, on_message: OnMessage) -> None:
        for key, _ in self._selector.select(timeout=POLL_SECONDS):
            worker: _Worker = key.data
            assert worker.process.stdout is not None
            content = os.read(worker.process.stdout.fileno(), 1 << 16)
            if not content:
                self._bury(worker, on_message)
                continue
            *lines, worker.buffer = (worker.buffer + content).split(b"\n")
            for line in lines:
                self._handle(worker, json.loads(line), on_message)

    def _handle(self, worker: _Worker, message: dict[str, Any], on_message: OnMessage) -> None:
        worker.is_ready = True
        if worker.job is None or message["event"] == "ready":
            return
        directory = worker.job.directory
        if message["event"] == "ended":
            worker.job = None
        on_message(directory, message)

    def _bury(self, worker: _Worker, on_message: OnMessage) -> None:
        """Take leave of a worker that has ended by itself, and mark its run as failed."""
        status = worker.process.wait()
        job = worker.job
        self._forget(worker)
        if job is None:
            return
        if status == exit_status.RESUMABLE:
            on_message(job.directory, {"event": "ended", "status": "stopped"})
            return
        reason = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        files = RunDirectory(job.directory)
        text = f"the process ended with {reason}; see {files.log}"
        files.fail(text, step=None)
        on_message(job.directory, {"event": "ended", "status": "failed", "message": text})

    def _quit(self, worker: _Worker) -> None:
        worker.send({"order": "quit"})
        try:
            worker.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        self._forget(worker)

    def _forget(self, worker: _Worker) -> None:
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        worker.process.stdout.close()
        try:
            worker.process.stdin.close()
        except BrokenPipeError:
            logger.debug("worker %s has left its last order unread", worker.process.pid)
        self._workers.remove(worker)

    def _end_workers(self) -> None:
        for worker in list(self._workers):
            if worker.job is not None:  # an error is on its way up: do not wait for a long step
                worker.process.kill()
            self._quit(worker)
        self._selector.close()


# --- the worker's side ------------------------------------------------------------------


def work(orders: BinaryIO, messages: BinaryIO) -> int:
    """Serve orders until told to quit, and return the exit status."""
    # Imported here: the driver's side has no use for training.
    from runners.config.schema import ConfigError
    from runners.process.lease import Locked
    from runners.process.signals import Stopped
    from runners.run import run

    with signals.Stop() as stop:
        directories: queue.Queue[Path | None] = queue.Queue()
        reader = threading.Thread(target=_listen, args=(orders, directories, stop), daemon=True)
        reader.start()

        def tell(message: dict[str, Any]) -> None:
            try:
                messages.write((json.dumps(message) + "\n").encode())
                messages.flush()
            except BrokenPipeError:
                os._exit(exit_status.RESUMABLE)  # the driver has died; no failure of the run

        tell({"event": "ready"})
        while True:
            try:
                directory = directories.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if stop.signal is not None:
                    return exit_status.RESUMABLE
                continue
            if directory is None:
                return exit_status.DONE
            _log_to(RunDirectory(directory).log)
            ended: dict[str, Any] = {"event": "ended"}
            try:
                status = run(
                    directory,
                    stop=stop,
                    on_progress=lambda message: tell({"event": "progress", **message}),
                )
                ended["status"] = status
                if status == "failed":
                    ended["message"] = RunDirectory(directory).failure()
            except Stopped as stopped:
                ended |= {"status": "stopped", "message": str(stopped)}
            except Locked as error:
                ended |= {"status": "busy", "message": str(error)}
            except ConfigError as error:
                ended |= {"status": "refused", "message": str(error)}
            tell(ended)


def _listen(orders: BinaryIO, directories: queue.Queue[Path | None], stop: signals.Stop) -> None:
    for line in orders:
        order = json.loads(line)
        if order["order"] == "quit":
            directories.put(None)
            return
        if order["order"] == "stop":
            stop.request()
        else:
            directories.put(Path(order["directory"]))
    # The driver has died. Whatever the main thread is doing, checkpoints are whole or not there.
    os._exit(exit_status.RESUMABLE)


def _log_to(path: Path) -> None:
    """Send what this process and its libraries print into the run's log."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stderr.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()}\n")
    sys.stderr.flush()


def main() -> int:
    """Serve a driver over the standard input and output."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    # A private copy of the pipe: a library that prints must not write into the messages.
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return work(sys.stdin.buffer, messages)


if __name__ == "__main__":
    sys.exit(main())
