"""What the ranks of a run decide together: when to stop, and what rank 0 does for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from runners.process.lease import Lease
from runners.process.ranks import World
from runners.process.signals import Stop, Stopped

Result = TypeVar("Result")


@dataclass(frozen=True)
class Agreement:
    """The stop of this process, the lease of the run, and the ranks that have to agree on both."""

    world: World
    stop: Stop
    lease: Lease | None = None
    """Held by rank 0."""

    def stop_requested(self) -> bool:
        """Return whether any rank was asked to stop; every rank has to call it."""
        if self.world.size == 1:
            return self.stop.requested
        status = self.world.largest(self.stop.exit_status if self.stop.requested else 0)
        if status:
            self.stop.adopt(status)
        # Not stop.requested: a signal may have come to this rank alone since the exchange, and the
        # others would go on without it.
        return status > 0

    def confirm_lease(self) -> None:
        """Check that the run's directory is still this run's to write to; every rank has to call.

        Raises:
            Stopped: on every rank, if another process has taken it over; ``Lost`` on rank 0.
        """
        self.on_first(lambda: None if self.lease is None else self.lease.confirm())

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do ``work`` while the others wait; return its value on every rank.

        The value is pickled, so that it has to be small.

        Raises:
            Stopped: on every rank, if rank 0 was stopped in the middle of it.
        """
        if self.world.size == 1:
            return work()
        outcome: tuple[str, Any, int] | None = None
        if self.world.is_first:
            try:
                outcome = "done", work(), 0
            except Stopped as stopped:
                outcome = "stopped", str(stopped), self.stop.exit_status
        kind, value, status = self.world.share(outcome)
        if kind == "stopped":
            self.stop.adopt(status)
            raise Stopped(value)
        return value
