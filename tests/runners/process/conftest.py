"""Forked processes that are ranks to one another, each with the environment of torchrun.

Ranks are forked, since importing torch takes longer than everything they do here; what it imports
late is imported before that.
"""

import contextlib
import os
import pickle
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

import runners.training.sharding  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[2] / "moeut"))  # for mechanism_cases


class Ranks:
    """A function in forked processes, each with the environment that torchrun gives it."""

    def __init__(self, folder: Path, size: int, function) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pids = []
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                self._work(rank, size, port, function)
            self.pids.append(pid)
        self.statuses = [None] * size

    def _work(self, rank, size, port, function):
        try:
            output = os.open(self.output(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            result = function()
            (self.folder / f"result{rank}").write_bytes(pickle.dumps(result))
            os._exit(result if isinstance(result, int) else 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            raise
        finally:
            os._exit(99)

    def output(self, rank=0):
        return self.folder / f"output{rank}"

    def said(self, rank):
        """Return what a rank has written, but for what PyTorch 2.10's own connections say."""
        lines = self.output(rank).read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo] "))

    def text(self):
        outputs = [self.output(rank) for rank in range(len(self.pids))]
        return "\n".join(path.read_text() for path in outputs if path.is_file())

    def poll(self):
        for rank, pid in enumerate(self.pids):
            if self.statuses[rank] is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return self.statuses

    def end(self, seconds=150.0):
        """Return the exit statuses of all ranks, and kill what is left after some time."""
        deadline = time.monotonic() + seconds
        while None in self.poll() and time.monotonic() < deadline:
            time.sleep(0.02)
        is_late = None in self.statuses
        for rank, pid in enumerate(self.pids):
            if self.statuses[rank] is None:
                os.kill(pid, signal.SIGKILL)
                self.statuses[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert not is_late, f"statuses {self.statuses}\n{self.text()}"
        return self.statuses

    def results(self):
        statuses = self.end()
        assert statuses == [0] * len(self.pids), self.text()
        return [
            pickle.loads((self.folder / f"result{rank}").read_bytes())
            for rank in range(len(self.pids))
        ]


@pytest.fixture
def start(tmp_path, capfd):
    """Return a function that forks ranks, which all call one function."""
    started = []

    def fork(function, size=2):
        with capfd.disabled():
            ranks = Ranks(tmp_path / f"ranks{len(started)}", size, function)
        started.append(ranks)
        return ranks

    yield fork
    for ranks in started:
        with contextlib.suppress(AssertionError):
            ranks.end(seconds=0)


# --- one update ---------------------------------------------------------------------------
