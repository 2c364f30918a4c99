"""How a sweep shows what it is doing: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runners.process.messages import (
    Ended,
    Message,
    Notice,
    ScoringProgress,
    Started,
    TrainingProgress,
)
from tasks.base.console import duration, say
from tasks.base.printable import printable

BAR_WIDTH = 12
LINE_SECONDS = 30.0
"""Time between two plain lines about the same run."""


@dataclass
class _Row:
    label: str
    began: float
    first_step: int | None = None
    first_time: float = 0.0
    message: TrainingProgress | ScoringProgress | None = None
    shown: float = 0.0

    def update(self, message: TrainingProgress | ScoringProgress) -> None:
        self.message = message
        if self.first_step is None and isinstance(message, TrainingProgress):
            self.first_step, self.first_time = message.step, time.monotonic()

    @property
    def share(self) -> float:
        return self.message.step / self.message.steps if self.message else 0.0

    @property
    def left(self) -> float | None:
        """Seconds of training left, at the speed since this process took up the run."""
        if self.message is None or self.first_step is None:
            return None
        done = self.message.step - self.first_step
        if done <= 0:
            return None
        elapsed = time.monotonic() - self.first_time
        return elapsed / done * (self.message.steps - self.message.step)

    def cells(self) -> tuple[str, str, str, str]:
        """Return step, loss, speed and time left in words."""
        if self.message is None:
            return "starting", "", "", ""
        step = f"{self.message.step}/{self.message.steps}"
        if isinstance(self.message, ScoringProgress):
            rows = f"{self.message.rows}/{self.message.of_rows} rows"
            return step, f"score {self.message.split}", rows, ""
        speed = self.message.tokens_per_second
        return (
            step,
            f"loss {self.message.loss:.4f}",
            f"{speed:,.0f} tokens/s" if speed else "",
            "" if self.left is None else f"{duration(self.left)} left",
        )


class Display:
    """Show the runs of a sweep while the context lasts.

    Args:
        labels: run directory → name shown.
        console: where to; a terminal gets a live table, anything else lines.
        num_workers: runs at a time, for the time that is left over all.
    """

    def __init__(self, labels: Mapping[Path, str], console: Console, num_workers: int) -> None:
        self.labels = labels
        self.console = console
        self.num_workers = num_workers
        self.ended: dict[str, int] = {}
        self._rows: dict[Path, _Row] = {}
        self._run_seconds: list[float] = []
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._table)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def on_message(self, directory: Path, message: Message) -> None:
        """Show a message of the executor."""
        if isinstance(message, Notice):
            label = self.labels.get(directory)  # none: it is about the sweep
            self._print(f"{label}: {message.text}" if label else message.text)
            return
        label = self.labels[directory]
        if isinstance(message, Started):
            self._rows[directory] = _Row(label, began=time.monotonic())
            if not self.console.is_terminal:
                self._print(f"{label}: started")
        elif isinstance(message, TrainingProgress | ScoringProgress):
            self._update(self._rows[directory], message)
        elif isinstance(message, Ended):
            self._end(self._rows.pop(directory), message)

    def _update(self, row: _Row, message: TrainingProgress | ScoringProgress) -> None:
        row.update(message)
        now = time.monotonic()
        if not self.console.is_terminal and now - row.shown >= LINE_SECONDS:
            row.shown = now
            self._print(f"{row.label}: " + "  ".join(cell for cell in row.cells() if cell))

    def _end(self, row: _Row, message: Ended) -> None:
        seconds = time.monotonic() - row.began
        self.ended[message.status] = self.ended.get(message.status, 0) + 1
        if message.status == "done":
            self._run_seconds.append(seconds)
        reason = f": {message.reason}" if message.reason else ""
        took = duration(seconds)
        self._print(f"{row.label}: {message.status} after {took}{reason}{self._tally()}")

    def _tally(self) -> str:
        done = sum(self.ended.values())
        left = self.seconds_left()
        rest = "" if left is None else f", about {duration(left)} left"
        return f"  [{done}/{len(self.labels)} runs{rest}]"

    def seconds_left(self) -> float | None:
        """Return an estimate of the time until all runs have ended; None until one is done."""
        if not self._run_seconds:
            return None
        mean = sum(self._run_seconds) / len(self._run_seconds)
        now = time.monotonic()
        waiting = len(self.labels) - sum(self.ended.values()) - len(self._rows)
        running = sum(max(mean - (now - row.began), 0.0) for row in self._rows.values())
        return (waiting * mean + running) / self.num_workers

    def _print(self, line: str) -> None:
        say(self.console, line)

    def _table(self) -> Group:
        """Return one line a run; where those do not fit, its label on a line above, and no bar.

        Of more runs than the terminal has lines for, the first are shown and the others counted.
        """
        rows = [(Text(printable(row.label)), row.cells(), row.share) for row in self._rows.values()]
        columns = zip(*([label.plain, *cells] for label, cells, _ in rows), strict=True)
        width = sum(max(map(cell_len, column)) + 1 for column in columns) + BAR_WIDTH
        is_narrow = width > self.console.width
        room = max(1, (self.console.height - 2) // (2 if is_narrow else 1))
        more = f"  and {len(rows) - room} more at work" if len(rows) > room else ""
        rows, tally = rows[:room], Text(self._tally().strip() + more)
        if is_narrow:
            lines = (
                (label, Text("  " + "  ".join(filter(None, cells)))) for label, cells, _ in rows
            )
            return Group(*(line for pair in lines for line in pair), tally)
        table = Table(box=None, pad_edge=False, show_header=False)
        for _ in range(6):
            table.add_column(no_wrap=True)
        for label, cells, share in rows:
            bar = ProgressBar(total=1.0, completed=share, width=BAR_WIDTH)
            table.add_row(label, bar, *map(Text, cells))
        return Group(table, tally)
