"""A sweep's driver whose runs nobody executes, or whose runs are timed from hand to hand.

``python -m runners.bench.sweep_worker nobody|timed=N:FILE SWEEP …``: what follows are the arguments
of ``runners.sweep``. ``timed`` executes N runs, as many of each variant as of any other, and writes
the seconds of each, by its directory.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runners import sweep
from runners.process.messages import Ended, Message, Started
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stop
from runners.sweeping import engines
from runners.sweeping.executor import Job, OnMessage
from runners.sweeping.local import LocalExecutor
from tasks.base.command_line import exit_with
from tasks.base.storage import write_json


class Nobody:
    """Takes jobs as a queue would, and leaves them there."""

    num_workers = 1

    def run(self, jobs: Sequence[Job], *, stop: Stop, on_message: OnMessage) -> None:
        """Do nothing."""


class Timed:
    """One local worker whose runs are timed: from being handed over to the end.

    Args:
        number: runs to execute, at most.
        path: file that the seconds are written to.
    """

    num_workers = 1

    def __init__(self, number: int, path: Path) -> None:
        self._number, self._path = number, path

    def run(self, jobs: Sequence[Job], *, stop: Stop, on_message: OnMessage) -> None:
        """Execute the jobs one after another."""
        began: dict[Path, float] = {}
        seconds: dict[str, float] = {}

        def listen(directory: Path, message: Message) -> None:
            if isinstance(message, Started):
                began[directory] = time.monotonic()
            elif isinstance(message, Ended) and message.status == "done":
                seconds[str(directory)] = time.monotonic() - began[directory]
            on_message(directory, message)

        LocalExecutor(1).run(evenly(jobs, self._number), stop=stop, on_message=listen)
        write_json(self._path, seconds)


def evenly(jobs: Sequence[Job], number: int) -> list[Job]:
    """Return the first jobs of each variant, as many of each, ``number`` in all or fewer."""
    variants: dict[str, list[Job]] = {}
    for job in jobs:
        variants.setdefault(RunDirectory(job.directory).read_record().variant, []).append(job)
    share = -(-number // max(1, len(variants)))
    return [job for found in variants.values() for job in found[:share]]


def main() -> int:
    """Register the executor and run the sweep's command line."""
    kind, _, wanted = sys.argv[1].partition("=")
    number, _, path = wanted.partition(":")
    engines.EXECUTORS["bench"] = engines.here(
        lambda jobs, workers: Timed(int(number), Path(path)) if kind == "timed" else Nobody()
    )
    return sweep.main([*sys.argv[2:], "--executor=bench"])


if __name__ == "__main__":
    exit_with(main)
