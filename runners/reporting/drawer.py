"""Figures drawn in a process of their own, while this one writes the page."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

from runners.reporting import figures
from runners.reporting.figures import Figure
from runners.reporting.html.document import PageUnavailable, plotting_library
from runners.reporting.results import SweepResults
from tasks.base.cores import available_cores

logger = logging.getLogger(__name__)

WORTH_PANELS = 8
"""Panels from which on another process is done sooner: it takes a second to begin."""


class Drawer:
    """Draws a report's figures beside other work, where a second core is free for it."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._loading: threading.Thread | None = None

    def __enter__(self) -> Drawer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def prepare(self, *, with_figures: bool = True) -> None:
        """Begin to load what a report takes long to load, here and in the other process.

        A sweep does this while its last run ends and a core has nothing else to do. Asked again,
        it does nothing.
        """
        if self._loading is not None:
            return
        if with_figures and available_cores() > 1:
            self._submit(_import_matplotlib)
        self._loading = threading.Thread(target=_load, daemon=True)
        self._loading.start()

    def begin(self, results: SweepResults, directory: Path) -> Callable[[], list[Path]]:
        """Begin to draw every figure; the returned function waits for it and returns the paths.

        Raises:
            FiguresUnavailable: matplotlib is not installed.
        """
        figures.check_matplotlib()
        if self._loading is not None:
            self._loading.join()
        drawings = figures.all_figures(results)
        panels = sum(len(each.panels) for each in drawings.values())
        if panels < WORTH_PANELS or available_cores() == 1:
            return lambda: figures.write_all(drawings, directory)
        try:
            drawn = self._submit(figures.write_all, drawings, directory)
        except BrokenProcessPool as error:
            drawn = Future()
            drawn.set_exception(error)
        return lambda: _ended(drawn, drawings, directory)

    def _submit(self, work: Callable[..., list[Path]], *arguments: object) -> Future[list[Path]]:
        if self._pool is None:
            # A fork of a process with threads may hang.
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self._pool.submit(work, *arguments)


def _load() -> None:
    importlib.import_module("scipy.stats")
    with contextlib.suppress(PageUnavailable):
        plotting_library()


def _import_matplotlib() -> list[Path]:
    with contextlib.suppress(figures.FiguresUnavailable):
        figures.check_matplotlib()
    return []


def _ended(drawn: Future[list[Path]], drawings: dict[str, Figure], directory: Path) -> list[Path]:
    try:
        return drawn.result()
    except BrokenProcessPool as error:
        logger.warning("figures are drawn again, here: %s", error)
        return figures.write_all(drawings, directory)
