"""The far end of a cluster's job: runs as child processes, which hear the signals of the job.

Slurm announces the end of a job's time by SIGUSR2, and a preemption or ``scancel`` by SIGTERM. The
children save and end with 75 at either. Which of the two came decides what follows: at its limit a
job asks for another turn; one that was cancelled does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from runners.process.run_directory import RunDirectory
from runners.sweeping.local import thread_environment
from tasks.base.command_line import DONE, FAILED, RESUMABLE

POLL_SECONDS = 0.2
REMIND_SECONDS = 2.0
"""Time between two SIGUSR2: a process that still imports torch does not hear the first."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class Children:
    """Execute runs side by side, each in a process of its own or under torchrun.

    Args:
        directories: those of the runs.
        num_threads: threads of each process.
        launcher: what stands before ``-m runners.run`` instead of the interpreter, as torchrun.
        is_first: whether this process's output goes to the logs of the runs, and its statuses
            decide; of several nodes' it is the first one's.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        *,
        num_threads: int,
        launcher: Sequence[str] = (),
        is_first: bool = True,
    ) -> None:
        self._directories = directories
        self._num_threads = num_threads
        self._launcher = launcher
        self._is_first = is_first
        self._processes: list[subprocess.Popen[bytes]] = []
        self.is_cancelled = False
        """Whether SIGTERM or SIGINT came."""
        self.is_at_limit = False
        """Whether SIGUSR2 came."""

    def run(self) -> int:
        """Execute the runs and return one exit status for all: 75 if any of them is to go on."""
        handlers = {
            number: signal.signal(number, self._hear)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        }
        # Whoever started this process may have held it back until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        try:
            self._processes = [self._start(directory) for directory in self._directories]
            self._wait()
        finally:
            self.stop(signal.SIGTERM)
            for process in self._processes:
                process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        statuses = [
            self._status(directory, process.returncode)
            for directory, process in zip(self._directories, self._processes, strict=True)
        ]
        return RESUMABLE if RESUMABLE in statuses else max(statuses)

    def stop(self, number: int) -> None:
        """Send a signal to the runs that are under way, under torchrun to their ranks."""
        for process in self._processes:
            if process.poll() is None:
                pids = _children(process.pid) if self._launcher else [process.pid]
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    def _start(self, directory: Path) -> subprocess.Popen[bytes]:
        command = [*(self._launcher or [sys.executable]), "-m", "runners.run", str(directory)]
        environment = thread_environment(self._num_threads)
        if not self._is_first:
            return subprocess.Popen(command, env=environment, preexec_fn=_prepare)
        log = RunDirectory(directory).log
        with open(log, "ab") as stream:
            return subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, preexec_fn=_prepare
            )

    def _wait(self) -> None:
        reminded = 0.0
        has_told = False
        while any(process.poll() is None for process in self._processes):
            time.sleep(POLL_SECONDS)
            if self.is_cancelled and not has_told:
                has_told = True  # once: at its end a run answers SIGTERM as any process does
                self.stop(signal.SIGTERM)
            elif self.is_at_limit and time.monotonic() - reminded > REMIND_SECONDS:
                reminded = time.monotonic()
                self.stop(signal.SIGUSR2)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self.is_at_limit = True
        else:
            self.is_cancelled = True

    def _status(self, directory: Path, status: int) -> int:
        """Return how a run has ended, whatever ended the process that executed it."""
        found = RunDirectory(directory).status()
        if found == "done":
            return DONE
        if found == "failed":
            return FAILED
        if self._launcher and (self.is_at_limit or self.is_cancelled):
            return RESUMABLE  # torchrun's nodes may lose sight of each other while they end
        return status if status > 0 else RESUMABLE  # a signal has ended it


def _prepare() -> None:
    """Let a child ignore SIGUSR2 until it listens, and end when its parent has died."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]
