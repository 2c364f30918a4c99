"""What the ranks of a run decide together: when to stop, and what rank 0 does for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from runners.process.ranks import World
from runners.process.signals import Stop, Stopped

Result = TypeVar("Result")


@dataclass(frozen=True)
class Agreement:
    """The stop of this process and the ranks that have to agree on it."""

    world: World
    stop: Stop

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
