"""The figures of a report: the score by difficulty, by depth at evaluation, and learning curves.

matplotlib is imported only to draw.
Files carry no dates, so the same results give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runners.config.labels import short_keys
from runners.reporting.breakdown import (
    depth_values,
    difficulty_metric,
    difficulty_name,
    part_note,
    shown_metric,
    trained_depth,
)
from runners.reporting.comparison import TOLERANCE, common, headline_values, training_flops
from runners.reporting.depth_curves import depth_curve_panels, depth_labels, over_depths
from runners.reporting.drawing import TOKENS, Curve, Panel, draw, save
from runners.reporting.results import Outcome, Setting, SweepResults
from runners.reporting.run_result import Depth
from runners.reporting.shown import (
    curve_models,
    grid_models,
    grid_note,
    note,
    panel_models,
    without_key,
)
from tasks.base.metrics import is_lower_better

NO_MATPLOTLIB = "no figures: matplotlib is not installed (pip install matplotlib)"


class FiguresUnavailable(RuntimeError):
    """matplotlib is not installed; the message says what to do."""


@dataclass(frozen=True)
class Figure:
    """What is drawn in one file."""

    panels: list[Panel]
    names: list[str]
    """Labels in the order of their colours."""
    caption: str = ""


def draw_all(results: SweepResults, directory: Path) -> list[Path]:
    """Draw every figure that the results have data for, as PNG, PDF and SVG, and return the paths.

    Raises:
        FiguresUnavailable: matplotlib is not installed.
    """
    check_matplotlib()
    return write_all(all_figures(results), directory)


def check_matplotlib() -> None:
    """Import matplotlib.

    Raises:
        FiguresUnavailable: it is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FiguresUnavailable(NO_MATPLOTLIB) from error


def write_all(drawings: Mapping[str, Figure], directory: Path) -> list[Path]:
    """Draw figures by their files' names, as PNG, PDF and SVG, and return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, each in drawings.items():
        if each.panels:
            figure = draw(each.panels, each.names, caption=each.caption)
            paths += save(figure, directory / name)
    return paths


# --- what is drawn ----------------------------------------------------------------------


def all_figures(results: SweepResults) -> dict[str, Figure]:
    """Return every figure by its file's name; one that there is no data for has no panel."""
    shown, deep = curve_models(results), over_depths(results)
    deep_shown = panel_models(deep)
    names = [setting.label for setting in shown.settings]
    caption = note(results, shown)
    return {
        "difficulty": Figure(difficulty_panels(shown), names, caption),
        "depth": Figure(depth_panels(shown), names, caption),
        "difficulty_by_depth": Figure(
            depth_curve_panels(deep_shown), depth_labels(results), note(deep, deep_shown)
        ),
        "repeats_used": Figure(repeats_used_panels(shown), names, caption),
        "learning": Figure(learning_panels(shown), names, caption),
        "grid": Figure(grid_panels(results), names, grid_note(results)),
    }


def difficulty_panels(results: SweepResults) -> list[Panel]:
    """Return a panel for each split that has rows of more than one difficulty."""
    panels = []
    for split in results.splits():
        curves = {s.label: difficulty_curve(results, s, split) for s in results.settings}
        if len({x for curve in curves.values() for x in curve}) > 1:
            name = next(filter(None, map(difficulty_name, results.settings)), "")
            y = difficulty_metric(results, split)
            is_accuracy = not is_lower_better(y)
            panels.append(
                Panel(
                    title=split,
                    x=name or "difficulty",
                    y=y,
                    curves=curves,
                    accuracy=is_accuracy,
                    # Of text, the buckets of positions double from one to the next.
                    wide=not is_accuracy,
                )
            )
    return panels


def difficulty_curve(results: SweepResults, setting: Setting, split: str) -> Curve:
    """Return every seed's score by difficulty at the model's own depth."""
    metric = results.headline_metric(setting)
    curve: dict[float, list[float]] = {}
    for run in setting.done:
        score = run.score(split)
        for key, cell in ({} if score is None else score.by_difficulty).items():
            shown = shown_metric(cell, metric)
            if shown is not None and math.isfinite(cell[shown]):
                curve.setdefault(float(key), []).append(cell[shown])
    return curve


def depth_panels(results: SweepResults) -> list[Panel]:
    """Return a panel for each split that a model was evaluated on at several depths."""
    panels = []
    for split in results.splits():
        curves, marks = {}, {}
        for setting in results.settings:
            values = depth_values(results, setting, split)
            curve = {float(_scalar(depth)): numbers for depth, numbers in values.items()}
            if len(curve) > 1:
                curves[setting.label] = curve
                trained = trained_depth(setting, split)
                if trained is not None:
                    marks[setting.label] = float(_scalar(trained))
        if curves:
            y = results.headline_metric(results.settings[0])
            said = ["repeats at evaluation (dotted: in training)", *part_note(results, split)]
            x = ". ".join(said)
            panels.append(
                Panel(
                    title=split,
                    x=x,
                    y=y,
                    curves=curves,
                    marks=marks,
                    accuracy=not is_lower_better(y),
                )
            )
    return panels


def _scalar(depth: Depth) -> int:
    return max(depth) if isinstance(depth, tuple) else depth


def repeats_used_panels(results: SweepResults) -> list[Panel]:
    """Return a panel of the repeats that tokens take by difficulty, where halting decides them."""
    panels = []
    for split in results.splits():
        curves: dict[str, dict[str, dict[float, list[float]]]] = {}  # table → setting → curve
        for setting in results.settings:
            scores = [score for run in setting.done if (score := run.score(split)) is not None]
            for score in scores:
                for name, cells in score.tables.items():
                    if name.startswith("difficulty, ") and name.endswith("repeats used"):
                        curve = curves.setdefault(name, {}).setdefault(setting.label, {})
                        for key, cell in cells.items():
                            metric = next(word for word in cell if word != "rows")
                            curve.setdefault(float(key), []).append(cell[metric])
        x = next(filter(None, map(difficulty_name, results.settings)), "difficulty")
        for name, found in curves.items():
            y = name.removeprefix("difficulty, ")
            panels.append(Panel(title=split, x=x, y=y, curves=found, accuracy=False, linear=True))
    return panels


def grid_panels(results: SweepResults) -> list[Panel]:
    """Return a panel of the headline over each key of the grid that takes several numbers.

    A curve is a variant at what the grid's other keys are.
    """
    panels = []
    short = short_keys(results.grid_keys)
    for key in results.grid_keys:
        curves: dict[str, dict[float, list[float]]] = {}
        for setting in grid_models(results, key).settings:
            at = setting.parameters.get(key)
            values = headline_values(results, setting)
            if values and isinstance(at, (int, float)) and not isinstance(at, bool):
                curves.setdefault(without_key(setting, key, short), {})[float(at)] = values
        if len({at for curve in curves.values() for at in curve}) > 1:
            metric = results.headline_metric(results.settings[0])
            panels.append(
                Panel(
                    title=grid_title(results),
                    x=key,
                    y=metric,
                    curves=curves,
                    accuracy=not is_lower_better(metric),
                )
            )
    return panels


def grid_title(results: SweepResults) -> str:
    """Return the headline's split, with the budget of operations if all settings have the same."""
    split = common(results, results.headline_split) or "headline"
    found = [flops for s in results.settings if (flops := training_flops(s)) is not None]
    if len(found) > 1 and max(found) <= (1 + TOLERANCE) * min(found):
        return f"{split}, at {sum(found) / len(found):.2g} training FLOPs"
    return split


def learning_panels(results: SweepResults) -> list[Panel]:
    """Return a panel of the training loss, and one for each split scored on the way.

    They run over steps; where the score is that of a language model, over the tokens seen.
    """
    y = results.headline_metric(results.settings[0])
    over_tokens = is_lower_better(y) and all(map(_tokens_by_step, results.runs))
    x = TOKENS if over_tokens else "step"
    rows = {run.directory: _placed_rows(run, over_tokens) for run in results.runs}
    loss = {s.label: _curve(rows, s, lambda row: row.get("loss")) for s in results.settings}
    panels = []
    if any(loss.values()):
        panels.append(
            Panel(title="train", x=x, y="loss", curves=loss, accuracy=False, points=False)
        )
    splits = dict.fromkeys(
        row["split"] for found in rows.values() for _, row in found if "split" in row
    )
    for split in splits:
        curves = {
            setting.label: _curve(rows, setting, _split_reader(split, results, setting))
            for setting in results.settings
        }
        if len({at for curve in curves.values() for at in curve}) > 1:
            panels.append(
                Panel(
                    title=split,
                    x=x,
                    y=y,
                    curves=curves,
                    accuracy=not is_lower_better(y),
                    points=False,
                )
            )
    return panels


Row = dict[str, Any]


def _tokens_by_step(run: Outcome) -> dict[int, int] | None:
    """Return the tokens seen at each logged step; None where rows do not tell."""
    rows = [row for row in run.metrics_rows() if "loss" in row]
    if any("tokens_seen" not in row for row in rows):
        return None
    return {0: 0} | {row["step"]: row["tokens_seen"] for row in rows}


def _placed_rows(run: Outcome, over_tokens: bool) -> list[tuple[float, Row]]:
    """Return the rows of the log, each with its position on the x axis."""
    rows = run.metrics_rows()
    tokens = _tokens_by_step(run) if over_tokens else None
    if tokens is None:
        return [(row["step"], row) for row in rows]
    # A score may come between two logged steps or after the last; steps read equally many tokens.
    steps = [row["step"] for row in rows]
    last, end = max(tokens), max(steps, default=0)
    if end > last > 0:
        tokens[end] = tokens[last] * end // last
    at = np.interp(steps, list(tokens), list(tokens.values()))
    return [(float(round(x)), row) for x, row in zip(at, rows, strict=True)]


def _split_reader(
    split: str, results: SweepResults, setting: Setting
) -> Callable[[Row], float | None]:
    metric = results.headline_metric(setting)
    return lambda row: row["metrics"].get(metric) if row.get("split") == split else None


def _curve(
    rows: Mapping[Path, list[tuple[float, Row]]],
    setting: Setting,
    read: Callable[[Row], float | None],
) -> Curve:
    curve: dict[float, list[float]] = {}
    for run in setting.runs:
        for at, row in rows[run.directory]:
            value = read(row)
            if value is not None and math.isfinite(value):
                curve.setdefault(at, []).append(value)
    return curve
