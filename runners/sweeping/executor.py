"""What executes the runs of a sweep: the one seam between a sweep and a machine.

A run is a directory. It is laid out before it is handed over, ``python -m runners.run DIRECTORY``
executes it wherever that is, and what became of it stands in its files. An executor therefore keeps
nothing of its own: whoever loses it loses nothing, and the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runners.process.messages import Message
from runners.process.signals import Stop


@dataclass(frozen=True)
class Job:
    """A run to execute, and what it needs of a machine."""

    directory: Path
    num_threads: int
    uses_gpu: bool = False
    steps: int = 0
    """Updates of its training, of which a driver shows how many are done."""
    work: float = 0.0
    """How long it takes beside others, roughly."""


class ClusterUnavailable(RuntimeError):
    """A cluster does not answer, or what it takes to speak to it is missing; one line."""


OnMessage = Callable[[Path, Message], None]
"""Gets a run's directory and what is said of it; a ``Notice`` may be of the sweep's directory."""


class Executor(Protocol):
    """Executes run directories, here or elsewhere."""

    @property
    def num_workers(self) -> int:
        """Runs at a time, by which a sweep estimates the time that is left."""
        ...

    def run(self, jobs: Sequence[Job], *, stop: Stop, on_message: OnMessage) -> None:
        """Execute every job and return when there is nothing left to wait for.

        ``on_message`` gets ``Started`` for each job that a process takes up, then what the run says
        of itself as far as it can be heard, then ``Ended``. An executor that hands its jobs to a
        queue may return before they have ended: a run of which no ``Ended`` came is as its
        directory says, and counts as resumable.

        Once ``stop.requested``, no job is started, and those under way save and end, unless they
        belong to a queue that outlives this process. A process that dies takes only its own run
        with it.
        """
        ...
