"""Batches made in the background, one step ahead of the one that needs them.

What a step reads is a function of its number, so the thread has no state to save, and the bits of a
run are those without it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """Calls ``make(step)`` in a thread, and already for the step after the one asked for.

    ``make`` is never called twice at a time. What it raises comes out of the ``get`` of its step.
    """

    def __init__(self, make: Callable[[int], Made], *, num_steps: int) -> None:
        self._make = make
        self._num_steps = num_steps
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Made]] | None = None

    def get(self, step: int) -> Made:
        """Return what belongs to ``step``."""
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
