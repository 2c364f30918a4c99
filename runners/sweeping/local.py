"""The executor of one machine: a few worker processes, each of which serves run after run.

A worker is ``python -m runners.sweeping.local``. Serving several saves the seconds that importing
torch takes. Orders come over its standard input, messages go over its standard output, one line of
JSON each. A worker that dies takes only its own run with it; one whose input ends without an order
to quit has lost its driver, and ends at once.
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

from runners.config.schema import ConfigError
from runners.process.messages import (
    Ended,
    Message,
    Notice,
    OnProgress,
    Ready,
    RunEnd,
    Started,
    decode,
    encode,
)
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stop, Stopped
from runners.process.start import importing
from runners.sweeping.executor import Job, OnMessage
from tasks.base.command_line import DONE, RESUMABLE, print_what_can_be
from tasks.base.cores import available_cores
from tasks.base.lease import Locked
from tasks.base.storage import why_not_written

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
SORTED_PER_WORKER = 16
"""Jobs at the end that are sorted: with more of them the order of a sweep matters more."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def default_workers(jobs: Sequence[Job], *, per_gpu: int = 1) -> tuple[int, list[str]]:
    """Return how many runs to execute at a time on this machine, and the GPUs to deal out to them.

    Where every run uses a GPU, ``per_gpu`` runs a GPU; otherwise the cores of this process over the
    most threads that a run has.
    """
    if all(job.uses_gpu for job in jobs):
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
        gpus = [name for name in names if name]
        return len(gpus) * per_gpu, gpus
    return max(1, available_cores() // max(job.num_threads for job in jobs)), []


def in_turn(jobs: Sequence[Job], num_workers: int) -> list[Job]:
    """Return the jobs as they are begun: in their order, but the last of them longest first.

    Otherwise one worker may take up a long job as the others run out of jobs.
    """
    first = max(0, len(jobs) - SORTED_PER_WORKER * num_workers)
    return [*jobs[:first], *sorted(jobs[first:], key=lambda job: -job.work)]


def thread_environment(num_threads: int) -> dict[str, str]:
    """Return this process's environment with the thread counts of a run in a child process."""
    threads = {name: str(num_threads) for name in THREAD_VARIABLES}
    return {**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE"}


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
        self._pending: deque[Job] = deque()
        self._is_stopping = False
        self._killed: set[Path] = set()
        """Runs that are tried for the second time."""

    @classmethod
    def for_jobs(
        cls, jobs: Sequence[Job], workers: int | None, *, per_gpu: int = 1
    ) -> LocalExecutor:
        """Return an executor for these jobs, of as many workers as asked for or as suit them."""
        default, devices = default_workers(jobs, per_gpu=per_gpu)
        return cls(min(workers or default, len(jobs)), devices=devices)

    def run(self, jobs: Sequence[Job], *, stop: Stop, on_message: OnMessage) -> None:
        """Execute every job, the last of them longest first, and return when all have ended.

        After ``stop.requested`` no job is started, and those under way save and end. The run of a
        worker that dies is marked as failed; but that of one that something else has killed, as
        Linux does when memory runs out, is tried again once, after all others, and then stays
        resumable: it has done nothing wrong.
        """
        pending = self._pending = deque(in_turn(jobs, self.num_workers))
        self._killed.clear()
        self._is_stopping = False
        try:
            while True:
                if stop.requested and not self._is_stopping:
                    self._is_stopping = True
                    pending.clear()
                    for worker in list(self._workers):
                        self._stop(worker, on_message)
                self._assign(pending, on_message)
                if not any(worker.job for worker in self._workers):
                    break
                self._read(on_message)
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
            on_message(worker.job.directory, Started())

    def _start(self, num_threads: int) -> _Worker:
        taken = {worker.slot for worker in self._workers}
        slot = min(set(range(self.num_workers)) - taken)
        variables = thread_environment(num_threads)
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        flags = ["-P"] if sys.flags.safe_path else []  # so that the worker finds what this one did
        # A session of its own: Ctrl-C in the terminal reaches the driver alone, which tells its
        # workers; they would otherwise be interrupted twice.
        process = subprocess.Popen(
            [sys.executable, *flags, "-m", "runners.sweeping.local"],
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
            on_message(job.directory, Ended("stopped"))

    def _read(self, on_message: OnMessage) -> None:
        for key, _ in self._selector.select(timeout=POLL_SECONDS):
            worker: _Worker = key.data
            assert worker.process.stdout is not None
            content = os.read(worker.process.stdout.fileno(), 1 << 16)
            if not content:
                self._note_death(worker, on_message)
                continue
            *lines, worker.buffer = (worker.buffer + content).split(b"\n")
            for line in lines:
                self._handle(worker, decode(line), on_message)

    def _handle(self, worker: _Worker, message: Message, on_message: OnMessage) -> None:
        worker.is_ready = True
        if worker.job is None or isinstance(message, Ready):
            return
        directory = worker.job.directory
        if isinstance(message, Ended):
            worker.job = None
        on_message(directory, message)

    def _note_death(self, worker: _Worker, on_message: OnMessage) -> None:
        """Forget a worker that has ended by itself, and mark its run as failed."""
        status = worker.process.wait()
        job = worker.job
        self._forget(worker)
        if job is None:
            return
        if status == RESUMABLE:
            on_message(job.directory, Ended("stopped"))
            return
        if status == -signal.SIGKILL:
            self._note_kill(job, on_message)
            return
        reason = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        files = RunDirectory(job.directory)
        text = f"the process ended with {reason}; see {files.log}"
        files.fail(text, step=None)
        on_message(job.directory, Ended("failed", text))

    def _note_kill(self, job: Job, on_message: OnMessage) -> None:
        """Put back the run of a worker that was killed from outside, or leave it after two times.

        Nothing tells a process what it was killed for. Memory is by far the most frequent reason,
        and a run of which that is true fits when fewer run beside it.
        """
        log = RunDirectory(job.directory).log
        text = f"killed from outside (SIGKILL), most likely since memory ran out; see {log}"
        if job.directory not in self._killed and not self._is_stopping:
            self._killed.add(job.directory)
            self._pending.append(job)
            on_message(job.directory, Notice(f"{text}; it is tried once more, after the others"))
            return
        on_message(job.directory, Ended("killed", f"{text}; the same command continues it"))

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


# --- the worker -------------------------------------------------------------------------


def work(orders: BinaryIO, messages: BinaryIO) -> int:
    """Serve orders until told to quit, and return the exit status."""
    with importing():
        from runners.run import run  # torch and all models, which the other end does without

    def send(message: Message) -> None:
        try:
            messages.write(encode(message))
            messages.flush()
        except BrokenPipeError:
            os._exit(RESUMABLE)  # the driver has died; no failure of the run

    with Stop() as stop:
        directories: queue.Queue[Path | None] = queue.Queue()
        threading.Thread(target=_listen, args=(orders, directories, stop), daemon=True).start()
        send(Ready())
        while True:
            try:
                directory = directories.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if stop.signal is not None:
                    return RESUMABLE
                continue
            if directory is None:
                return DONE
            send(_execute(run, directory, stop, send))


def _execute(
    run: Callable[..., RunEnd], directory: Path, stop: Stop, on_progress: OnProgress
) -> Ended:
    try:
        _log_to(RunDirectory(directory).log)
        status = run(directory, stop=stop, on_progress=on_progress)
    except Stopped as stopped:
        return Ended("stopped", str(stopped))
    except Locked as error:
        return Ended("busy", str(error))
    except ConfigError as error:
        return Ended("refused", str(error))
    except OSError as error:  # no room for a log, a lease, or for why the run has failed
        return Ended("failed", f"cannot be written: {why_not_written(error)}")
    return Ended(status, RunDirectory(directory).failure() if status == "failed" else None)


def _listen(orders: BinaryIO, directories: queue.Queue[Path | None], stop: Stop) -> None:
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
    os._exit(RESUMABLE)


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
    print_what_can_be()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    # A private copy of the pipe: a library that prints must not write into the messages.
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return work(sys.stdin.buffer, messages)


if __name__ == "__main__":
    sys.exit(main())
