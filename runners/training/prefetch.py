"""Batches made in a thread, one step ahead.

A step's batch is a function of the step's number. So the thread has no state to save, and does not
change the result of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """Calls ``make(step)`` in a thread, one step before it is asked for.

    There is never more than one call at a time. An error in ``make`` is raised by ``get``.
    """

    def __init__(self, make: Callable[[int], Made], *, num_steps: int) -> None:
        self._make = make
        self._num_steps = num_steps
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Made]] | None = None

    def get(self, step: int) -> Made:
        """Return ``make(step)``."""
        future = None
        if self._ahead is not None and self._ahead[0] == step:
            future = self._ahead[1]
        if future is None:
            future = self._thread.submit(self._make, step)
        made = future.result()
        self._ahead = None
        if step + 1 < self._num_steps:
            self._ahead = step + 1, self._thread.submit(self._make, step + 1)
        return made
