"""What an analysis found: a tidy table, a figure, and a line of what it cannot say."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.analysis.figures import Draw
from tasks.base.storage import write_atomically, write_json

Row = dict[str, Any]


class NotThere(ValueError):
    """The model or its task has nothing of what an analysis looks at; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A tidy table, and how it is drawn."""

    name: str
    """Name of its files."""
    title: str
    rows: Sequence[Row]
    """One dict a row, all with the same keys."""
    limits: str
    """What it cannot say."""
    draw: Draw
    """Makes a figure of the rows, given the title."""


def write(finding: Finding, folder: Path) -> list[Path]:
    """Write ``<name>.csv``, ``<name>.json`` and ``<name>.png``, and return their paths."""
    picture = folder / f"{finding.name}.png"
    paths = write_numbers(finding, folder)
    figure = finding.draw(finding.rows, finding.title)
    figure.savefig(picture, dpi=120, metadata={"Software": None})
    return [*paths, picture]


def write_numbers(finding: Finding, folder: Path) -> list[Path]:
    """Write the table, and in JSON how the page of a report shows it: title, limits, columns."""
    table, plan = folder / f"{finding.name}.csv", folder / f"{finding.name}.json"
    write_atomically(table, to_csv(finding.rows))
    texts = [
        name
        for name in finding.rows[0]
        if any(isinstance(row[name], str) and row[name] for row in finding.rows)
    ]
    words = {"title": finding.title, "limits": finding.limits, "texts": texts}
    write_json(plan, words | finding.draw.plan)
    return [table, plan]


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with six significant digits; the first row names the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()
