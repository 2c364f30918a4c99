"""Tables of text, as Markdown, as LaTeX or on a terminal, and numbers as their text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from runners.reporting.markup import (
    PRELUDE,
    escape_latex,
    escape_markdown,
    latex_label,
    latex_row,
    markdown_heading,
    markdown_line,
)
from runners.reporting.statistics import TOO_SMALL, Comparison, Summary, mean_and_std
from tasks.base.console import WholeTable, duration
from tasks.base.metrics import METRICS
from tasks.base.printable import printable

MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text."""

    name: str
    """Short name, for labels."""
    title: str
    columns: list[str]
    rows: list[list[str]]
    num_names: int = 1
    """How many columns, from the first, are names, set left; the others are numbers."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the best and of those not distinguishable from it."""
    notes: list[str] = field(default_factory=list)


# --- rendering --------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """Return the table in Markdown, its columns aligned, its notes as a list below."""
    cells = [[escape_markdown(cell) for cell in row] for row in [table.columns, *table.rows]]
    for row, column in table.bold:
        cells[row + 1][column] = f"**{cells[row + 1][column]}**"
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_pad(row, widths) for row in cells]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    notes = [f"- {markdown_line(note)}" for note in table.notes]
    heading = f"## {markdown_heading(table.title)}"
    return "\n".join([heading, "", *lines, *([""] if notes else []), *notes]) + "\n"


def _pad(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"


def to_latex(table: Table) -> str:
    """Return the table as a LaTeX ``table`` in the style of the booktabs package."""
    cells = [[escape_latex(cell) for cell in row] for row in [table.columns, *table.rows]]
    for row, column in table.bold:
        cells[row + 1][column] = rf"\textbf{{{cells[row + 1][column]}}}"
    caption = ". ".join([table.title, *(note.rstrip(".") for note in table.notes)]) + "."
    columns, *body = map(latex_row, cells)
    alignment = "l" * table.num_names + "r" * (len(table.columns) - table.num_names)
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        columns,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{tab:{latex_label(table.name)}}}",
        r"\end{table}",
    ]
    needs_prelude = any(r"\anychar" in line for line in lines)
    return "\n".join([PRELUDE, *lines] if needs_prelude else lines)


def to_rich(table: Table) -> WholeTable:
    """Return the table for a terminal."""
    shown = WholeTable(title=table.title)
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if index < table.num_names else "right")
    for r, row in enumerate(table.rows):
        shown.add_row(
            *(
                Text(printable(cell), style="bold" if (r, c) in table.bold else "")
                for c, cell in enumerate(row)
            )
        )
    return shown


# --- numbers as text --------------------------------------------------------------------


def count(value: float | None) -> str:
    """Return a whole number with thousands separated."""
    return MISSING if value is None else f"{value:,.0f}"


def short_count(value: float) -> str:
    """Return a number, from a billion on with three digits: ``176 G`` for 176,032,798,906."""
    if value < 1e9:
        return count(value)
    rounded = float(f"{value:.3g}")
    power = min(int(math.log10(rounded) + 1e-9) // 3, 6)
    digits = f"{rounded / 1000**power:#.3g}".rstrip(".")
    return f"{digits} {' KMGTPE'[power]}"


def time(seconds: float | None) -> str:
    """Return a time in words."""
    return MISSING if seconds is None else duration(seconds)


def number(value: float, metric: str = "") -> str:
    """Return a metric's value with as many decimals as differences between models need."""
    decimals = METRICS[metric].decimals if metric in METRICS else 3
    return f"{value:.{decimals}f}"


def mean_std(values: Sequence[float], metric: str = "") -> str:
    """Return ``mean ± std``, the mean alone for one value, a dash for none."""
    if not values:
        return MISSING
    middle, std = mean_and_std(values)
    return number(middle, metric) + ("" if std is None else f" ± {number(std, metric)}")


def interval(summary: Summary | None, metric: str = "") -> str:
    """Return the confidence interval, or a dash where there is none."""
    if summary is None or summary.interval is None:
        return MISSING
    low, high = summary.interval
    return f"[{number(low, metric)}, {number(high, metric)}]"


def p_value(comparison: Comparison | None) -> str:
    """Return the corrected p-value, or ``TOO_SMALL`` where there is none."""
    if comparison is None:
        return MISSING
    if comparison.adjusted is None:
        return TOO_SMALL
    return "<0.001" if comparison.adjusted < 0.001 else f"{comparison.adjusted:.3f}"


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None where there are none."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None
