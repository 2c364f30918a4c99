"""Figures drawn in a process of their own, while this one writes the page.

The process is ``python -m runners.reporting.drawer``, which reads what it is to draw, pickled, from
its standard input. Python's own pools would run the main module of whoever calls anew.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from runners.reporting import figures
from runners.reporting.html.document import PageUnavailable, plotting_library
from runners.reporting.results import SweepResults
from tasks.base.cores import available_cores

logger = logging.getLogger(__name__)

WORTH_PANELS = 8
"""Panels from which on another process is done sooner: it takes a second to begin."""


class Drawer:
    """Draws a report's figures beside other work, where a second core is free for it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._loading: threading.Thread | None = None

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()  # it has drawn, or nobody waits for it
            self._process.communicate()

    def prepare(self, *, with_figures: bool = True) -> None:
        """Begin to load what a report takes long to load, here and in the other process.

        A sweep does this while its last run ends and a core has nothing else to do. Asked again,
        it does nothing.
        """
        if self._loading is not None:
            return
        if with_figures and available_cores() > 1:
            self._process = _start()
        self._loading = threading.Thread(target=_load, daemon=True)
        self._loading.start()

    def begin(self, results: SweepResults, directory: Path) -> Callable[[], None]:
        """Begin to draw every figure; the returned function waits until they are drawn.

        Raises:
            FiguresUnavailable: matplotlib is not installed.
        """
        figures.check_matplotlib()
        if self._loading is not None:
            self._loading.join()
        drawings = figures.all_figures(results)

        def draw_here() -> None:
            figures.write_all(drawings, directory)

        panels = sum(len(each.panels) for each in drawings.values())
        if panels < WORTH_PANELS or available_cores() == 1:
            return draw_here
        process = self._process = self._process or _start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as orders:
            pickle.dump((drawings, directory), orders)

        def wait() -> None:
            status = process.wait()
            if status:
                logger.warning("the process that draws has ended with status %s", status)
                draw_here()

        return wait


def _start() -> subprocess.Popen[bytes]:
    flags = ["-P"] if sys.flags.safe_path else []  # so that it finds what this one did
    return subprocess.Popen(
        [sys.executable, *flags, "-m", "runners.reporting.drawer"],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this process alone
    )


def _load() -> None:
    importlib.import_module("scipy.stats")
    with contextlib.suppress(PageUnavailable):
        plotting_library()


def draw(orders: BinaryIO) -> None:
    """Draw what another process asks for, if it does."""
    with contextlib.suppress(figures.FiguresUnavailable):
        figures.check_matplotlib()
    with contextlib.suppress(EOFError):
        drawings, directory = pickle.load(orders)
        figures.write_all(drawings, directory)


if __name__ == "__main__":
    draw(sys.stdin.buffer)
