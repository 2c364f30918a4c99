"""The scores of a language model on zero-shot benchmarks, as tables and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from runners.reporting.tables import MISSING, Table, to_latex, to_markdown, to_rich
from tasks.base.printable import printable
from tasks.zero_shot import Result, Score, get
from tasks.zero_shot.scoring import AVERAGES

FORMATS: dict[str, Callable[[Table], Any]] = {
    "table": to_rich,
    "markdown": to_markdown,
    "latex": to_latex,
}
"""How tables are shown; ``json`` shows the results as they are."""


@dataclass(frozen=True)
class Report:
    """Results of one model at one depth."""

    model: str
    num_repeats: int | None
    """None: the model's own depth."""
    limit: int | None
    results: list[Result]
    seconds: float
    context_length: int
    """Of the model: what is longer is cut."""
    repeats_used: float | None = None
    """Mean repeats of a token, where tokens leave early."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "model": self.model,
            "num_repeats": self.num_repeats,
            "limit": self.limit,
            "context_length": self.context_length,
            "seconds": self.seconds,
            **({} if self.repeats_used is None else {"repeats_used": self.repeats_used}),
            "results": [result.to_dict() for result in self.results],
        }

    def tables(self) -> list[Table]:
        """Return the table of all benchmarks, and one for each grouping."""
        parts = [
            _group_table(result, grouping)
            for result in self.results
            for grouping in get(result.benchmark).groupings
            if len(result.groups[grouping]) > 1
        ]
        return [self._overview(), *parts]

    def _overview(self) -> Table:
        rows: list[list[str]] = []
        bold: set[tuple[int, int]] = set()
        for result in self.results:
            for metric, one in result.metrics.items():
                if metric == result.headline:
                    bold.add((len(rows), 2))
                title = get(result.benchmark).title
                chance = result.chance.get(metric)
                shown = MISSING if chance is None else f"{chance:.4f}"
                rows.append([title, metric, *_cells(metric, one), shown, f"{one.questions:,}"])
        notes = ["bold: what the MoEUT paper reports; ± is the standard error"]
        notes += [
            f"{get(result.benchmark).title}: each {result.averaged_over} counts the same"
            for result in self.results
            if result.averaged_over is not None
        ]
        notes += [
            f"{get(result.benchmark).title}: {result.truncated:,} continuations had their context "
            f"cut, since the model was trained on {self.context_length:,} tokens at once"
            for result in self.results
            if result.truncated
        ]
        if self.limit is not None:
            notes.append(f"only the first {self.limit} questions of each file")
        if self.repeats_used is not None:
            notes.append(f"a token took {self.repeats_used:.2f} repeats in the mean")
        depth = "" if self.num_repeats is None else f", {self.num_repeats} repeats"
        return Table(
            name="zero_shot",
            title=f"Zero-shot, {self.model}{depth}",
            columns=["benchmark", "metric", "score", "±", "chance", "questions"],
            rows=rows,
            bold=frozenset(bold),
            notes=notes,
        )


def _group_table(result: Result, grouping: str) -> Table:
    title = get(result.benchmark).title
    metrics = list(result.metrics)
    rows = []
    for group, scores in result.groups[grouping].items():
        numbers = [cell for metric in metrics for cell in _cells(metric, scores[metric])]
        questions = next(iter(scores.values())).questions
        rows.append([group.replace("_", " "), *numbers, f"{questions:,}"])
    return Table(
        name=f"{result.benchmark}_{grouping}",
        title=f"{title} by {grouping}",
        columns=[grouping, *(name for metric in metrics for name in (metric, "±")), "questions"],
        rows=rows,
    )


def _cells(metric: str, one: Score) -> tuple[str, str]:
    digits = 4 if AVERAGES[metric] == "share" else 2
    error = one.standard_error
    return f"{one.value:.{digits}f}", MISSING if error is None else f"{error:.{digits}f}"


def show(reports: Sequence[Report], style: str, console: Console) -> None:
    """Print reports as ``json`` or in one of ``FORMATS``."""
    if style == "json":
        sys.stdout.write(json.dumps([report.to_dict() for report in reports], indent=1) + "\n")
        return
    for report in reports:
        for table in report.tables():
            shown = FORMATS[style](table)
            if isinstance(shown, str):
                sys.stdout.write(shown + "\n")
                continue
            console.print(shown)
            for note in table.notes:
                console.print(Text(printable(note), style="dim"))
            console.print()
