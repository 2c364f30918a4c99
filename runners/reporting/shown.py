"""Which models figures show where a sweep has more than can be told apart: the best of them.

Tables have all of them; ``runners.report --models N`` chooses another number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from runners.config.labels import grid_values, short_keys
from runners.reporting.comparison import common, headline_values, titled
from runners.reporting.results import Setting, SweepResults
from tasks.base.metrics import is_lower_better

MOST_MODELS = 60
"""Models of a figure: more curves take minutes to draw, and nobody can tell them apart."""
MOST_PANELS = 48
"""Panels of a figure, and figures of a page, where a model has one for each split."""


def curve_models(results: SweepResults) -> SweepResults:
    """Return the results of the models whose curves share a figure."""
    return best(results, results.models_shown or MOST_MODELS)


def panel_models(results: SweepResults) -> SweepResults:
    """Return the results of the models that have panels of their own, one for each split."""
    splits = max(1, len(results.splits()))
    return best(results, results.models_shown or max(1, MOST_PANELS // splits))


def best(results: SweepResults, most: int) -> SweepResults:
    """Return the results of at most so many models: the best by the main column, in their order.

    Of equal models the first is the better one; those without a value come last.
    """
    if len(results.settings) <= most:
        return results

    def rank(setting: Setting) -> float:
        values = headline_values(results, setting)
        if not values:
            return math.inf
        mean = math.fsum(values) / len(values)
        return mean if is_lower_better(results.headline_metric(setting)) else -mean

    kept = {setting.label for setting in sorted(results.settings, key=rank)[:most]}
    chosen = [setting for setting in results.settings if setting.label in kept]
    return dataclasses.replace(results, settings=chosen)


def grid_models(results: SweepResults, key: str) -> SweepResults:
    """Return the results of the models whose curves over a key of the grid are shown.

    They are those that differ in this key alone from a model that has a curve elsewhere.
    """
    short = short_keys(results.grid_keys)
    names = {without_key(setting, key, short) for setting in curve_models(results).settings}
    kept = [s for s in results.settings if without_key(s, key, short) in names]
    return dataclasses.replace(results, settings=kept)


def without_key(setting: Setting, key: str, short: Mapping[str, str]) -> str:
    """Return the name of a setting without one of its grid values."""
    others = {name: value for name, value in setting.parameters.items() if name != key}
    values = ", ".join(grid_values(others, short))
    return f"{setting.variant_label} ({values})" if values else setting.variant_label


def note(results: SweepResults, shown: SweepResults) -> str:
    """Return what a figure says of the models that it leaves out; nothing where it shows all."""
    few, every = len(shown.settings), len(results.settings)
    if few == every:
        return ""
    split = common(results, results.headline_split)
    metric = titled(results.headline_metric(results.settings[0]))
    column = f"{split} {metric}" if split else metric
    return f"The {few} of {every:,} models with the best {column}; tables have all."


def grid_note(results: SweepResults) -> str:
    """Return what the figure says of the curves that it leaves out."""
    kept = [grid_models(results, key) for key in results.grid_keys]
    if all(len(some.settings) == len(results.settings) for some in kept):
        return ""
    return f"Curves on which is one of: {note(results, curve_models(results))}"
