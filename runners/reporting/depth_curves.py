"""The score over difficulty (length, nesting, hops) once for each depth at evaluation.

Models with shared layers can be evaluated at other depths than that of training; whether more
repeats carry to longer inputs is seen in one curve for each depth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from runners.reporting.breakdown import (
    difficulty_metric,
    difficulty_name,
    metric_notes,
    natural_key,
    part_note,
    shown_metric,
    trained_depth,
)
from runners.reporting.drawing import Panel
from runners.reporting.results import Setting, SweepResults
from runners.reporting.run_result import Depth
from runners.reporting.tables import Table, mean_std
from tasks.base.metrics import is_lower_better

Curves = Mapping[Depth, dict[str, list[float]]]
"""Depth → difficulty, as its table names it → every seed's score."""


def depth_curves(results: SweepResults, setting: Setting, split: str) -> Curves:
    """Return the curves of a setting on a split, the shallowest depth first."""
    metric = results.headline_metric(setting)
    curves: dict[Depth, dict[str, list[float]]] = {}
    for run in setting.done:
        for score in run.depth_scores(split):
            if score.depth is None:
                continue
            curve = curves.setdefault(score.depth, {})
            for key, cell in score.by_difficulty.items():
                shown = shown_metric(cell, metric)
                if shown is not None and math.isfinite(cell[shown]):
                    curve.setdefault(key, []).append(cell[shown])
    return {depth: curves[depth] for depth in sorted(curves, key=_depth_key)}


def _depth_key(depth: Depth) -> tuple[int, ...]:
    return depth if isinstance(depth, tuple) else (depth, depth)


def _depth_name(depth: Depth) -> str:
    return " + ".join(map(str, depth)) if isinstance(depth, tuple) else str(depth)


def _label(depth: Depth) -> str:
    return "1 repeat" if depth == 1 else f"{_depth_name(depth)} repeats"


def depth_labels(results: SweepResults) -> list[str]:
    """Return what the curves of all panels are called, the shallowest depth first."""
    scores = (score for run in results.runs for score in run.scores)
    depths = {score.depth for score in scores if score.depth is not None}
    return [_label(depth) for depth in sorted(depths, key=_depth_key)]


def _shown(results: SweepResults, setting: Setting, split: str) -> Curves:
    """Return the curves where there are several depths and several difficulties, or none."""
    curves = depth_curves(results, setting, split)
    several = len(curves) > 1 and len({key for curve in curves.values() for key in curve}) > 1
    return curves if several else {}


def over_depths(results: SweepResults) -> SweepResults:
    """Return the results of the models that a split was scored on at several depths."""
    deep = [
        setting
        for setting in results.settings
        if any(len(_depths(setting, split)) > 1 for split in results.splits())
    ]
    return dataclasses.replace(results, settings=deep)


def _depths(setting: Setting, split: str) -> set[Depth]:
    scores = (score for run in setting.done for score in run.depth_scores(split))
    return {score.depth for score in scores if score.depth is not None}


def depth_curve_tables(results: SweepResults) -> list[Table]:
    """Return a table of difficulty by depth for each split and setting that has several of both."""
    tables = []
    for split in results.splits():
        for number, setting in enumerate(results.settings):
            curves = _shown(results, setting, split)
            if not curves:
                continue
            metric, trained = difficulty_metric(results, split), trained_depth(setting, split)
            keys = sorted({key for curve in curves.values() for key in curve}, key=natural_key)
            names = [_depth_name(depth) + ("*" if depth == trained else "") for depth in curves]
            rows = [
                [key, *(mean_std(curve.get(key, []), metric) for curve in curves.values())]
                for key in keys
            ]
            difficulty = difficulty_name(setting) or "difficulty"
            tables.append(
                Table(
                    name=f"{results.name}-{split}-depths-{number}",
                    title=f"{split}: {setting.label}, by {difficulty} and repeats",
                    columns=[difficulty, *names],
                    rows=rows,
                    notes=[
                        "* the model's own depth.",
                        *metric_notes(results, metric),
                        *part_note(results, split),
                    ],
                )
            )
    return tables


def depth_curve_panels(results: SweepResults) -> list[Panel]:
    """Return a panel for each table, a curve for each depth."""
    panels = []
    for split in results.splits():
        for setting in results.settings:
            curves = _shown(results, setting, split)
            if not curves:
                continue
            metric = difficulty_metric(results, split)
            panels.append(
                Panel(
                    title=f"{split}: {setting.label}",
                    x=difficulty_name(setting) or "difficulty",
                    y=metric,
                    curves={
                        _label(depth): {float(key): values for key, values in curve.items()}
                        for depth, curve in curves.items()
                    },
                    accuracy=not is_lower_better(metric),
                )
            )
    return panels
