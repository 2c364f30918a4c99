"""What the page's figures show: one row for each seed and position, and how to draw them.

Vega-Lite draws them in the browser. It was chosen among the kept libraries that a Python package
brings along: bundled, it takes 0.9 MB of the file (Bokeh 1.3 MB, Plotly 4.8 MB), and it draws SVG,
which prints sharply and can be read by a screen reader.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from runners.config.labels import short_keys
from runners.reporting.breakdown import difficulty_name, natural_key, part_note, trained_depth
from runners.reporting.comparison import common
from runners.reporting.depth_curves import over_depths
from runners.reporting.figures import grid_title
from runners.reporting.results import Outcome, Setting, SweepResults
from runners.reporting.run_result import Depth, Score
from runners.reporting.shown import (
    curve_models,
    grid_models,
    grid_note,
    note,
    panel_models,
    without_key,
)
from tasks.base.metrics import is_lower_better

LEARNING_POINTS = 60
"""Rows of a learning curve that are drawn of each run, evenly chosen, the last among them."""
MOST_LEARNING_POINTS = 6000
"""Rows of one figure of learning curves, over all its runs."""

Row = tuple[int, int, Any, float]
"""Place in ``series``, seed, position on the x axis, value."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure: for each series and seed its values over x."""

    name: str
    """Short name, of letters, digits and hyphens; no other chart of the page has it."""
    title: str
    section: str
    kind: Literal["line", "strip"]
    """Curves over numbers, or points beside the names on the y axis."""
    x: str
    metric: str
    series: list[str]
    rows: list[Row]
    source: str
    """The file that the numbers stand in."""
    where: dict[str, Any] = field(default_factory=dict)
    """Columns of that file that all rows share, and their values."""
    is_log: bool = False
    """Whether values are drawn on a logarithmic axis."""
    is_log_x: bool = False
    is_whole_x: bool = False
    """Whether x are whole numbers."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the page's script."""
        return {key: value for key, value in vars(self).items() if value not in ("", {})}


def all_charts(results: SweepResults) -> list[Chart]:
    """Return every figure that the results have data for, the headline first."""
    shown, deep = curve_models(results), over_depths(results)
    deep_shown = panel_models(deep)
    caption = note(results, shown)
    return [
        *_noted(_headline(shown), caption),
        *_by_grid(results),
        *_noted(_by_group(shown), caption),
        *_noted(_by_depth(shown), caption),
        *_noted(_by_difficulty_and_depth(deep_shown), note(deep, deep_shown)),
        *_noted(_learning(shown), caption),
    ]


def _noted(charts: Iterable[Chart], caption: str) -> Iterator[Chart]:
    """Yield the charts, each with what they say of the models that they leave out."""
    for chart in charts:
        notes = " ".join(filter(None, [caption, chart.note]))
        yield dataclasses.replace(chart, note=notes) if caption else chart


# --- scores at the end ------------------------------------------------------------------


def _labels(results: SweepResults) -> list[str]:
    return [setting.label for setting in results.settings]


def _metric(results: SweepResults) -> str:
    return results.headline_metric(results.settings[0])


def _headline(results: SweepResults) -> Iterator[Chart]:
    metric = _metric(results)
    for split in results.splits():
        rows: list[Row] = [
            (index, run.seed, setting.label, value)
            for index, setting in enumerate(results.settings)
            for run in setting.done
            if (value := run.value(split, metric)) is not None
        ]
        if rows:
            yield Chart(
                name=_slug(f"scores-{split}"),
                title=f"{split}: every seed",
                section="scores",
                kind="strip",
                x="model",
                metric=metric,
                series=_labels(results),
                rows=rows,
                source="results.csv",
                where={"split": split},
                is_log=is_lower_better(metric),
            )


def _by_grid(results: SweepResults) -> Iterator[Chart]:
    metric, short = _metric(results), short_keys(results.grid_keys)
    for key in results.grid_keys:
        found = []  # series, seed, value of the key, score
        for setting in grid_models(results, key).settings:
            at, split = setting.parameters.get(key), results.headline_split(setting)
            if split is None or not isinstance(at, (int, float)) or isinstance(at, bool):
                continue
            name = without_key(setting, key, short)
            scores = ((run.seed, run.value(split, metric)) for run in setting.done)
            found += [(name, seed, at, value) for seed, value in scores if value is not None]
        series = list(dict.fromkeys(name for name, *_ in found))
        if len({at for _, _, at, _ in found}) > 1:
            yield Chart(
                name=_slug(f"grid-{key}"),
                title=grid_title(results),
                section="scores",
                kind="line",
                x=key,
                metric=metric,
                series=series,
                rows=[(series.index(name), seed, at, value) for name, seed, at, value in found],
                source="results.csv",
                where={"split": common(results, results.headline_split)},
                is_log=is_lower_better(metric),
                is_whole_x=all(float(at).is_integer() for _, _, at, _ in found),
                note=grid_note(results),
            )


def _by_group(results: SweepResults) -> Iterator[Chart]:
    for split in results.splits():
        scores = [score for run in results.runs if (score := run.score(split)) is not None]
        for group in dict.fromkeys(name for score in scores for name in score.groups()):
            rows = _group_rows(results, split, group)
            keys = {row[2] for row in rows}
            if len(keys) < 2:
                continue
            difficulty = next(filter(None, map(difficulty_name, results.settings)), "difficulty")
            name = difficulty if group == "difficulty" else group
            numbers = all(natural_key(key)[0] == 0 for key in keys)
            placed: list[Row] = [
                (series, seed, float(key) if numbers else key, value)
                for series, seed, key, value in rows
            ]
            metric = _metric(results)
            yield Chart(
                name=_slug(f"{group}-{split}"),
                title=f"{split}: by {name}",
                section="groups",
                kind="line" if numbers else "strip",
                x=name,
                metric=metric,
                series=_labels(results),
                rows=placed,
                source="breakdown.csv",
                where={"split": split, "table": group},
                is_log=is_lower_better(metric),
                is_log_x=numbers and group == "difficulty" and is_lower_better(metric),
                is_whole_x=numbers and all(float(key).is_integer() for key in keys),
            )


def _group_rows(results: SweepResults, split: str, group: str) -> list[tuple[int, int, str, float]]:
    rows = []
    for index, setting in enumerate(results.settings):
        metric = results.headline_metric(setting)
        for run in setting.done:
            score = run.score(split)
            cells = {} if score is None else score.groups().get(group, {})
            for key, cell in cells.items():
                value = cell.get(metric)
                if value is not None and math.isfinite(value):
                    rows.append((index, run.seed, key, value))
    return rows


# --- depth at evaluation ----------------------------------------------------------------


def _deep_scores(setting: Setting, split: str) -> Iterator[tuple[Outcome, Score, Depth]]:
    for run in setting.done:
        for score in run.depth_scores(split):
            if score.depth is not None:
                yield run, score, score.depth


def _last(depth: Depth) -> int:
    return max(depth) if isinstance(depth, tuple) else depth


def _by_depth(results: SweepResults) -> Iterator[Chart]:
    metric = _metric(results)
    for split in results.splits():
        rows: list[Row] = []
        trained = []
        for index, setting in enumerate(results.settings):
            found: list[Row] = [
                (index, run.seed, _last(depth), value)
                for run, score, depth in _deep_scores(setting, split)
                if (value := score.value(metric)) is not None
            ]
            if len({row[2] for row in found}) > 1:
                rows += found
                depth = trained_depth(setting, split)
                trained.append(f"{setting.label} {_last(depth)}" if depth is not None else "")
        if rows:
            yield Chart(
                name=_slug(f"depth-{split}"),
                title=f"{split}: by depth at evaluation",
                section="depth",
                kind="line",
                x="repeats",
                metric=metric,
                series=_labels(results),
                rows=rows,
                source="results.csv",
                where={"split": split},
                is_log=is_lower_better(metric),
                is_whole_x=True,
                note=" ".join(
                    [
                        f"Repeats in training: {', '.join(filter(None, trained))}.",
                        *part_note(results, split),
                    ]
                ),
            )


def _by_difficulty_and_depth(results: SweepResults) -> Iterator[Chart]:
    for split in results.splits():
        for setting in results.settings:
            metric = results.headline_metric(setting)
            found = [
                (depth, run.seed, key, cell[metric])
                for run, score, depth in _deep_scores(setting, split)
                for key, cell in score.by_difficulty.items()
                if math.isfinite(cell.get(metric, math.nan))
            ]
            depths = sorted({_last(depth) for depth, *_ in found})
            keys = {key for _, _, key, _ in found}
            if len(depths) < 2 or len(keys) < 2:
                continue
            yield Chart(
                name=_slug(f"depths-{split}-{setting.variant}-{setting.hash}"),
                title=f"{split}: {setting.label}, a curve for each depth",
                section="depth",
                kind="line",
                x=difficulty_name(setting) or "difficulty",
                metric=metric,
                series=[f"{depth} repeats" for depth in depths],
                rows=[
                    (depths.index(_last(depth)), seed, float(key), value)
                    for depth, seed, key, value in found
                ],
                source="breakdown.csv",
                where={"split": split, "table": "difficulty", "hash": setting.hash},
                is_log=is_lower_better(metric),
                is_log_x=is_lower_better(metric),
                is_whole_x=all(float(key).is_integer() for key in keys),
            )


# --- on the way -------------------------------------------------------------------------


def _learning(results: SweepResults) -> Iterator[Chart]:
    metric = _metric(results)
    found: dict[str, list[Row]] = {}
    for index, setting in enumerate(results.settings):
        for run in setting.runs:
            for title, points in _curves(run, metric).items():
                most = max(2, min(LEARNING_POINTS, MOST_LEARNING_POINTS // len(results.runs)))
                found.setdefault(title, []).extend(
                    (index, run.seed, step, value) for step, value in _thinned(points, most)
                )
    for title, rows in found.items():
        is_loss = title == "train"
        if len({row[2] for row in rows}) > 1:
            yield Chart(
                name=_slug(f"learning-{title}"),
                title=f"{title}: {'loss' if is_loss else metric} in training",
                section="learning",
                kind="line",
                x="step",
                metric="loss" if is_loss else metric,
                series=_labels(results),
                rows=rows,
                source="metrics.jsonl",
                where={} if is_loss else {"split": title},
                is_log=is_loss or is_lower_better(metric),
                is_whole_x=True,
                note=f"At most {LEARNING_POINTS} logged steps of each run are drawn; "
                "its metrics.jsonl has all.",
            )


def _curves(run: Outcome, metric: str) -> dict[str, list[tuple[int, float]]]:
    """Return the training loss and the score of each split by step."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in run.metrics_rows():
        title = row.get("split", "train")
        value = row["metrics"].get(metric) if "split" in row else row.get("loss")
        if value is not None and math.isfinite(value):
            curves.setdefault(title, []).append((row["step"], value))
    return curves


def _thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Return at most so many points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)
