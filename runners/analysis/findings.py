"""What an analysis found: a tidy table, a figure, and a line of what it cannot say."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base.storage import write_atomically

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
    draw: Callable[[Sequence[Row], str], Any]
    """Makes a figure of the rows, given the title."""


def write(finding: Finding, folder: Path) -> list[Path]:
    """Write ``<name>.csv`` and ``<name>.png`` and return their paths."""
    table, picture = folder / f"{finding.name}.csv", folder / f"{finding.name}.png"
    write_atomically(table, to_csv(finding.rows))
    figure = finding.draw(finding.rows, finding.title)
    figure.savefig(picture, dpi=120, metadata={"Software": None})
    return [table, picture]


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with six significant digits; the first row names the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()
