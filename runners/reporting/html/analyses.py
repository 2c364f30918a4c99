"""What ``python -m runners.analyze`` wrote into the runs, as figures of the page.

Each analysis is a tidy table beside a plan of how it is drawn: ``<name>.csv`` and ``<name>.json``
in ``RUN/analysis/<split>/``. The numbers on the page are those of the tables.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.reporting.results import Outcome, SweepResults

MOST_NUMBERS = 200_000
"""Numbers of all figures, 5 MB of the page at most; what more runs have stands in their files."""

Plan = dict[str, Any]
Table = list[dict[str, str]]


@dataclass(kw_only=True)
class Analysis:
    """A figure over several models: curves of several measures, or maps."""

    name: str
    """Short name, of letters, digits and hyphens; no other analysis of the page has it."""
    title: str
    limits: str
    """What it cannot say."""
    kind: str
    """``curves`` or ``maps``."""
    x: str
    y: str
    """Column of a map's rows; empty for curves."""
    measures: list[str]
    """Columns that are drawn, one of them at a time."""
    models: list[str]
    group: str
    """What ``groups`` are values of."""
    source: str
    """The file, in a run's directory, that the numbers stand in."""
    groups: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    """Place in ``models``, place in ``groups``, seed, x, for maps y, then each measure or None."""
    is_whole_x: bool = False
    left_out: int = 0
    """Curves: runs that have been analysed and are not shown; maps: groups of the runs shown."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the page's script."""
        return dict(vars(self))


def all_analyses(results: SweepResults) -> list[Analysis]:
    """Return a figure for each analysis of each split, curves before maps.

    A figure has all seeds of curves and the first of maps, as far as its share of the numbers of
    a page reaches: then runs are left out, or groups of a model's maps.
    """
    files = list(_by_seed(results))
    models: dict[tuple[str, str], set[int]] = {}
    for model, _, path in files:
        models.setdefault(_key(path), set()).add(model)
    share = MOST_NUMBERS // max(1, len(models))
    labels = [setting.label for setting in results.settings]
    found: dict[tuple[str, str], Analysis] = {}
    for model, run, path in files:
        read = _read(path)
        if read is None:
            continue
        plan, table = read
        figure = found.setdefault(_key(path), _empty(plan, labels, *_key(path)))
        is_map = plan["kind"] == "maps"
        if is_map and any(row[0] == model for row in figure.rows):
            continue
        rows = _rows(figure, plan, model, run.seed, table)
        if is_map:
            room = share // len(models[_key(path)]) // len(figure.measures)
            rows = _first_groups(figure, rows, room)
        elif (len(figure.rows) + len(rows)) * len(figure.measures) > share:
            figure.left_out += 1
            continue
        figure.rows += rows
    shown = [figure for figure in found.values() if figure.rows]
    for figure in shown:
        figure.is_whole_x = all(isinstance(row[3], int) for row in figure.rows)
    return sorted(shown, key=lambda figure: (figure.kind == "maps", figure.source))


def _key(path: Path) -> tuple[str, str]:
    """Return split and name of an analysis."""
    return path.parent.name, path.stem


def _first_groups(figure: Analysis, rows: list[list[Any]], room: int) -> list[list[Any]]:
    """Return the rows of as many groups, from the first, as there is room for, but of one."""
    sizes = Counter(row[1] for row in rows)
    totals = list(itertools.accumulate(sizes.values()))
    kept = {group for group, total in zip(sizes, totals, strict=True) if total <= room}
    kept |= set(itertools.islice(sizes, 1))
    figure.left_out += len(sizes) - len(kept)
    return [row for row in rows if row[1] in kept]


def _by_seed(results: SweepResults) -> Iterator[tuple[int, Outcome, Path]]:
    """Yield place of the model, run and plan: of every model the first run, then the second."""
    most = max(len(setting.runs) for setting in results.settings)
    for number in range(most):
        for model, setting in enumerate(results.settings):
            for run in setting.runs[number : number + 1]:
                for path in sorted((run.directory / "analysis").glob("*/*.json")):
                    yield model, run, path


def _read(path: Path) -> tuple[Plan, Table] | None:
    """Return a plan and its table; None where they are damaged, which is no reason for no page."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        with open(path.with_suffix(".csv"), newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        measures = plan["y"] if plan["kind"] == "curves" else [*plan["values"], plan["y"]]
        used = {plan["x"], *measures, *plan["group"], *plan["texts"]}
        whole = bool(table) and used <= set(table[0]) and plan["title"] and plan["limits"]
        return (plan, table) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _empty(plan: Plan, labels: list[str], split: str, name: str) -> Analysis:
    is_map = plan["kind"] == "maps"
    return Analysis(
        name="".join(c if c.isascii() and c.isalnum() else "-" for c in f"{name}-{split}"),
        title=f"{split}: {plan['title']}",
        limits=plan["limits"],
        kind=plan["kind"],
        x=plan["x"],
        y=plan["y"] if is_map else "",
        measures=plan["values"] if is_map else plan["y"],
        models=labels,
        group=", ".join(plan["group"]),
        source=f"analysis/{split}/{name}.csv",
    )


def _rows(figure: Analysis, plan: Plan, model: int, seed: int, table: Table) -> list[list[Any]]:
    places = [plan["x"], plan["y"]] if plan["kind"] == "maps" else [plan["x"]]
    rows = []
    for line in table:
        group = ", ".join(f"{name} {line[name]}" for name in plan["group"])
        if group not in figure.groups:
            figure.groups.append(group)
        where = [line[name] if name in plan["texts"] else _number(line[name]) for name in places]
        values = [_number(line[name]) for name in figure.measures]
        rows.append([model, figure.groups.index(group), seed, *where, *values])
    return rows


def _number(text: str) -> float | int | None:
    """Return a number as it stands in a table; None for an empty cell and for what is none."""
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except (ValueError, AttributeError):
        return None
