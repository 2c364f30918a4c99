"""The processes that pack, and a progress bar."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import connection
from typing import Any

from rich.progress import TextColumn, TimeRemainingColumn

from tasks.base.console import PlainConsole, make_progress

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""Time between two plain log lines."""


class _SameProcess(Executor):
    """Run each call at once, in this process: the pool of one worker."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """Give an executor of ``workers`` processes; one worker is this process itself.

    When the context ends by an exception, the processes are ended and their work is left
    unfinished. They end themselves when this process is killed.
    """
    if workers == 1:
        yield _SameProcess()
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    executor.shutdown()


def _start_worker() -> None:
    # The parent decides what an interrupt means; a worker would only print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end: otherwise a worker of a killed process would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class Bar:
    """A progress bar on a terminal's stderr; log lines, now and then, elsewhere.

    Args:
        what: the work, in a word.
        unit: the things counted.
        total: their number.
    """

    def __init__(self, what: str, unit: str, total: int) -> None:
        self._what, self._unit, self._total = what, unit, total
        self._done = 0
        self._shown = time.monotonic()
        self._progress = make_progress(
            PlainConsole(stderr=True),
            functools.partial(TextColumn, "{task.completed:,.0f}/{task.total:,.0f} " + unit),
            TimeRemainingColumn,
            speed_estimate_period=600.0,
        )
        self._row = self._progress.add_task(what, total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._progress.stop()

    def advance(self, count: int) -> None:
        """Count ``count`` more things as done."""
        self._done = min(self._done + count, self._total)
        self._progress.update(self._row, completed=self._done)
        if self._progress.disable and time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            logger.info(
                "%s: %s/%s %s", self._what, f"{self._done:,}", f"{self._total:,}", self._unit
            )
