"""The tables below the comparison: every split, kinds of rows, depths, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

from runners.reporting.comparison import common, titled
from runners.reporting.results import Outcome, Setting, SweepResults
from runners.reporting.run_result import Depth
from runners.reporting.tables import MISSING, Table, count, mean_std


def splits_table(results: SweepResults) -> Table:
    """Return every metric of every split at the models' own depth."""
    rows = []
    for split in results.splits():
        for metric in results.metrics():
            cells = [
                mean_std(setting.values(split, metric), metric) for setting in results.settings
            ]
            if any(cell != MISSING for cell in cells):
                rows.append([split, titled(metric), _rows(results, split), *cells])
    labels = [setting.label for setting in results.settings]
    return Table(
        name=f"{results.name}-splits",
        title="Every split and metric",
        columns=["split", "metric", "rows", *labels],
        rows=rows,
        num_names=2,
    )


def _rows(results: SweepResults, split: str) -> str:
    for run in results.runs:
        score = run.score(split)
        if score is not None:
            rows, available = score.rows, score.rows_available
            return count(rows) if rows == available else f"{count(rows)} of {count(available)}"
    return MISSING


def breakdown_tables(results: SweepResults) -> list[Table]:
    """Return the tables of each split: by category, by difficulty, and those of its task alone."""
    tables = []
    difficulty = common(results, difficulty_name) or "difficulty"
    for split in results.splits():
        scores = [score for run in results.runs if (score := run.score(split)) is not None]
        for group in dict.fromkeys(name for score in scores for name in score.groups()):
            name = difficulty if group == "difficulty" else group
            table = _breakdown(results, split, name, group)
            if len(table.rows) > 1:
                tables.append(table)
    return tables


def difficulty_name(setting: Setting) -> str | None:
    """Return what the task of a setting calls the difficulty of a row."""
    return setting.first(lambda result: result.task.difficulty_name)


def _breakdown(results: SweepResults, split: str, name: str, group: str) -> Table:
    def found(run: Outcome) -> dict[str, dict[str, float]]:
        score = run.score(split)
        return {} if score is None else score.groups().get(group, {})

    keys = list(dict.fromkeys(key for run in results.runs for key in found(run)))
    keys.sort(key=natural_key)
    rows = []
    metrics: set[str] = set()
    for key in keys:
        sizes = {int(found(run)[key]["rows"]) for run in results.runs if key in found(run)}
        cells = []
        for setting in results.settings:
            metric = results.headline_metric(setting)
            entries = [found(run).get(key, {}) for run in setting.done]
            shown = next(filter(None, (shown_metric(cell, metric) for cell in entries)), metric)
            there = [cell[shown] for cell in entries if math.isfinite(cell.get(shown, math.nan))]
            cells.append(mean_std(there, shown))
            metrics.add(shown)
        rows.append([key, " or ".join(map(count, sorted(sizes))), *cells])
    slug = "".join(c if c.isalnum() else "-" for c in f"{split}-{name}")
    return Table(
        name=f"{results.name}-{slug}",
        title=f"{split}: by {name}",
        columns=[name, "rows", *(setting.label for setting in results.settings)],
        rows=rows,
        notes=[note for metric in sorted(metrics) for note in metric_notes(results, metric)],
    )


def metric_notes(results: SweepResults, metric: str) -> list[str]:
    """Return what a table says of its metric where that is not the headline."""
    return [] if metric in results.headline_metrics else [f"Scores are {metric}."]


def shown_metric(cell: Mapping[str, float], metric: str) -> str | None:
    """Return the headline metric where a cell has it, or else the one metric that it has."""
    others = [name for name in cell if name != "rows"]
    if metric in others:
        return metric
    return others[0] if len(others) == 1 else None


def difficulty_metric(results: SweepResults, split: str) -> str:
    """Return the metric that scores of a split are broken down by difficulty in."""
    metric = results.headline_metric(results.settings[0])
    scores = (score for run in results.runs if (score := run.score(split)) is not None)
    cells = (cell for score in scores for cell in score.by_difficulty.values())
    return next(filter(None, (shown_metric(cell, metric) for cell in cells)), metric)


def natural_key(key: str) -> tuple[int, float, str]:
    """Return what labels of rows are sorted by: numbers first, by their value."""
    try:
        return 0, float(key), ""
    except ValueError:
        return 1, 0.0, key


def depth_tables(results: SweepResults) -> list[Table]:
    """Return, for each split, accuracy by the depth at which shared models were evaluated."""
    tables = []
    for split in results.splits():
        deep = [s for s in results.settings if len(depth_values(results, s, split)) > 1]
        if not deep:
            continue
        by_setting = [depth_values(results, setting, split) for setting in deep]
        depths = sorted({depth for values in by_setting for depth in values}, key=_depth_key)
        rows = []
        for depth in depths:
            cells = []
            for setting, values in zip(deep, by_setting, strict=True):
                star = "*" if depth == trained_depth(setting, split) else ""
                metric = results.headline_metric(setting)
                cells.append(mean_std(values.get(depth, []), metric) + star)
            shown = " + ".join(map(str, depth)) if isinstance(depth, tuple) else str(depth)
            rows.append([shown, *cells])
        tables.append(
            Table(
                name=f"{results.name}-{split}-depth",
                title=f"{split}: by depth at evaluation",
                columns=["repeats", *(setting.label for setting in deep)],
                rows=rows,
                notes=["* the model's own depth.", *part_note(results, split)],
            )
        )
    return tables


def _depth_key(depth: Depth) -> tuple[int, ...]:
    return depth if isinstance(depth, tuple) else (depth, depth)


def depth_values(results: SweepResults, setting: Setting, split: str) -> dict[Depth, list[float]]:
    """Return every seed's headline metric of a split by repeats."""
    metric = results.headline_metric(setting)
    found: dict[Depth, list[float]] = {}
    for run in setting.done:
        for score in run.depth_scores(split):
            value = score.metrics.get(metric)
            if score.depth is not None and value is not None:
                found.setdefault(score.depth, []).append(value)
    return {
        depth: [value for value in values if math.isfinite(value)]
        for depth, values in found.items()
    }


def part_note(results: SweepResults, split: str) -> list[str]:
    """Return how many rows a curve over depth was scored on, where it was a part of them."""
    score = results.curve_scores.get(split)
    if score is None:
        return []
    rows, available = count(score.rows), count(score.rows_available)
    return [f"Each depth on the same {rows} of {available} rows."]


def trained_depth(setting: Setting, split: str) -> Depth | None:
    """Return the repeats of the model's own depth, or None."""
    score = setting.done[0].score(split) if setting.done else None
    return None if score is None else score.depth


def problems_table(results: SweepResults) -> Table | None:
    """Return every run that has no usable result, or None if all have."""
    rows = [
        [
            setting.label,
            str(run.seed),
            run.status if run.status != "done" else "not a number",
            run.message,
        ]
        for setting in results.settings
        for run in setting.runs
        if run.status != "done" or run.message
    ]
    if not rows:
        return None
    return Table(
        name=f"{results.name}-problems",
        title=f"Without a usable result: {len(rows)} of {len(results.runs)} runs",
        columns=["model", "seed", "status", "what happened"],
        rows=rows,
        num_names=4,
    )
