"""Says how far a drawing of many rows is, where it takes long enough to wonder."""

from __future__ import annotations

import time

from tasks.base.console import PlainConsole, duration, say

EVERY = 10.0
"""Seconds between two lines, and before the first."""
LOOK = 1024
"""Rows after which the clock is looked at again."""


class Drawing:
    """Counts the rows of a split and prints a line on standard error every few seconds.

    Args:
        what: the task and the split, such as ``listops, train``.
        rows: how many are to be drawn.
    """

    def __init__(self, what: str, rows: int) -> None:
        self._what, self._rows = what, rows
        self._began = self._said = time.monotonic()
        self._count = 0

    def add(self) -> None:
        """Count one row."""
        self._count += 1
        if self._count % LOOK:
            return
        now = time.monotonic()
        if now - self._said >= EVERY:
            self._said = now
            left = (now - self._began) * (self._rows / self._count - 1)
            say(
                PlainConsole(stderr=True),
                f"{self._what}: {self._count:,} of {self._rows:,} rows drawn, "
                f"{duration(left)} left",
            )
