"""Where commands print: text of users is never markup, and tables never cut a number or a name.

rich reads ``[a-m]`` in a string as a style and ``:cat:`` as a picture, cuts the cells of tables at
the width of the terminal, and ends the process when the reader has gone. None of that happens here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

from tasks.base.printable import printable

LOG_WIDTH = 160
"""Columns of what is no terminal: a file or a pipe."""
UNLIMITED = 1 << 20
BAR_WIDTH = 20


class PlainConsole(Console):
    """A console that prints strings as they are.

    Raises:
        BrokenPipeError: on printing, once what reads the output has closed it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True  # what is printed on the way out has no reader either
        raise BrokenPipeError


def make_console(width: int = LOG_WIDTH) -> PlainConsole:
    """Return the console of the standard output, ``width`` columns wide where it is no terminal."""
    return PlainConsole(width=None if sys.stdout.isatty() else width)


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is, whatever its length; line ends in it stay."""
    text = "\n".join(map(printable, line.split("\n")))
    console.print(Text(text, style=style), soft_wrap=True)


def make_progress(
    console: Console, *numbers: Callable[..., ProgressColumn], **options: Any
) -> Progress:
    """Return a display of progress: what is done, a bar, numbers; only the first is ever wrapped.

    It is empty where the console is no terminal, and leaves nothing behind.
    """
    what = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    columns = [number(table_column=Column(no_wrap=True)) for number in numbers]
    return Progress(
        *(what, BarColumn(BAR_WIDTH), *columns),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        **options,
    )


class WholeTable(rich.table.Table):
    """A table that shows every cell whole, however narrow the terminal is.

    Titles of columns are wrapped between words first, then names, which are the columns set left.
    Where that is not enough, every row becomes a block: its first cell on a line, and below it
    ``title  cell`` for each other column. Strings are text, not markup.
    """

    def __init__(self, *, title: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.heading = title

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        super().add_column(_text(header), *arguments, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*map(_text, cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.heading:
            yield Text(printable(self.heading), style="italic")
        widths = self._widths(console, options)
        if widths is None:
            yield from self._blocks()
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int] | None:
        """Return the width of each column, without its padding; None where not all cells fit."""
        cells = [[_text(cell).plain for cell in column.cells] for column in self.columns]
        titles = [column.header.plain for column in self.columns]  # type: ignore[union-attr]
        whole = [_longest(texts) for texts in cells]
        words = [_longest(_words([title])) for title in titles]
        wrapped = [
            _longest(_words(texts)) if column.justify == "left" else width
            for column, texts, width in zip(self.columns, cells, whole, strict=True)
        ]
        wanted = list(map(max, whole, map(cell_len, titles)))
        room = options.max_width - self._frame(console, options)
        for least in (list(map(max, whole, words)), list(map(max, wrapped, words))):
            if sum(least) <= room:
                return _grow(least, wanted, room)
        return None

    def _frame(self, console: Console, options: ConsoleOptions) -> int:
        """Return how many columns of the terminal lines and padding take."""
        for column in self.columns:
            column.width = 1
        wide = options.update(width=UNLIMITED)
        return Measurement.get(console, wide, self).maximum - len(self.columns)

    def _blocks(self) -> Iterator[Text]:
        titles = [column.header.plain for column in self.columns]  # type: ignore[union-attr]
        longest = _longest(titles[1:])
        for first, *others in zip(*(column.cells for column in self.columns), strict=True):
            yield Text.assemble((f"{titles[0]} ", "dim"), first)  # type: ignore[arg-type]
            for title, cell in zip(titles[1:], others, strict=True):
                padding = " " * (longest - cell_len(title) + 2)
                yield Text.assemble("  ", title, padding, cell)  # type: ignore[arg-type]


def _text(cell: Any) -> Text:
    """Return a cell as text: a string as it is, on one line."""
    return cell if isinstance(cell, Text) else Text(printable("" if cell is None else str(cell)))


def _longest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _words(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in text.split(" ")]


def _grow(least: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Return widths as near to those wanted as there is room, from the first column on."""
    widths, left = list(least), room - sum(least)
    for index, width in enumerate(wanted):
        more = min(left, max(0, width - widths[index]))
        widths[index] += more
        left -= more
    return widths


def duration(seconds: float) -> str:
    """Return a time in words: ``42 s``, ``3 min 20 s``, ``2 h 05 min``, ``12 days``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 100:
        return f"{hours} h {minutes:02d} min"
    return f"{seconds / 86400:,.0f} days"
