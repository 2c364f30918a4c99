"""What the ranks of a run decide together: when to stop, and what rank 0 does for all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runners.process import ranks
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stop, Stopped
from tasks.base.lease import Lease, Locked, Lost

logger = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""Time that a run waits for a process that works on its directory and may be just ending."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Agreement:
    """The stop of this process, the lease of the run, and the ranks that have to agree on both."""

    world: World
    stop: Stop
    lease: Lease | None = None
    """Held by rank 0."""

    @property
    def is_asked(self) -> bool:
        """Whether this rank was asked to stop, or has lost the lease."""
        return self.stop.requested or not (self.lease is None or self.lease.is_held())

    def stop_requested(self) -> bool:
        """Return whether any rank was asked to stop; every rank has to call it."""
        if self.world.size == 1:
            return self.is_asked
        status = self.world.largest(self.stop.exit_status if self.is_asked else 0)
        if status:
            self.stop.adopt(status)
        # Not is_asked: a signal may have come to this rank alone since the exchange, and the
        # others would go on without it.
        return status > 0

    def confirm_lease(self) -> None:
        """Check that the run's directory is still this run's to write to; every rank has to call.

        Raises:
            Stopped: on every rank but a single one, if another process has taken it over.
            Lost: on a single one.
        """
        self.on_first(lambda: None if self.lease is None else self.lease.confirm())

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do ``work`` while the others wait; return its value on every rank.

        The value is pickled and sent, so it should be small.

        Raises:
            Stopped: on every rank, if rank 0 was stopped in the middle of it.
        """
        if self.world.size == 1:
            return work()
        outcome: tuple[str, Any, int] | None = None
        if self.world.is_first:
            try:
                outcome = "done", work(), 0
            except (Stopped, Lost) as stopped:
                outcome = "stopped", str(stopped), self.stop.exit_status
        kind, value, status = self.world.share(outcome)
        if kind == "stopped":
            self.stop.adopt(status)
            raise Stopped(value)
        return value

    def record_failure(self, files: RunDirectory, error: Exception, *, step: int | None) -> None:
        """Write down why the run has failed, on rank 0.

        What a rank raises because the connection to another one broke is not the reason: that is
        what the other one has left in the store, if it could.

        Raises:
            Stopped: another rank has just gone; the run goes on from its last checkpoint.
            Lost: another process has taken the directory over: then that is why.
        """
        if self.lease is not None:
            self.lease.confirm()
        message = str(error) or repr(error)
        if self.world.size > 1:
            reported = self.world.reported()
            if ranks.is_lost(error) and reported is None:
                raise Stopped(
                    "lost another rank, which was killed or whose machine is gone; the run "
                    "continues from its last checkpoint"
                ) from error
            if reported is not None:
                message = reported
            else:
                logger.exception("rank %d has failed", self.world.rank)
                self.world.report(message)
        else:
            logger.exception("the run has failed")
        if self.world.is_first:
            files.fail(message, step=step)


@contextlib.contextmanager
def hold(
    directory: Path, stop: Stop, world: World, *, say: Callable[[str], None]
) -> Iterator[Agreement]:
    """Hold the lease of a directory on rank 0 while the context lasts, and give the agreement.

    Args:
        directory: of the run; on a disk that all ranks share.
        stop: asked while waiting for another process.
        world: this process's place among the ranks.
        say: gets a sentence if there is somebody to wait for, or was to take over from.

    Raises:
        Locked: on every rank, if another process works on the directory.
        OSError: on every rank, if rank 0 cannot write to it.
        Stopped: on every rank, if a stop was asked for while waiting; on rank 0, at the end, if
            another process has taken the directory over meanwhile.
    """

    def check() -> None:
        if stop.requested:
            raise Stopped(f"stopped while waiting for another process to leave {directory}")

    with contextlib.ExitStack() as stack:
        lease: Lease | None = None
        problem: Locked | Stopped | OSError | None = None
        if world.is_first:
            lease = Lease(directory, wait=WAIT_SECONDS, say=say, check=check)
            try:
                stack.enter_context(lease)
            except (Locked, Stopped, OSError) as error:
                problem = error
        # The others hear of it as what it is, or they would wait for rank 0 for ever.
        told = world.share(None if problem is None else (type(problem), str(problem)))
        if told is not None:
            kind, text = told
            raise problem or kind(text)
        try:
            yield Agreement(world, stop, lease)
        except Lost as lost:
            raise Stopped(str(lost)) from lost
