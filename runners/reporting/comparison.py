"""The comparison of a sweep's settings: tests, the main table, and its notes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from runners.config.labels import compact, short_keys
from runners.reporting.results import Setting, SweepResults
from runners.reporting.run_result import Score
from runners.reporting.statistics import LEVEL, TOO_SMALL, Comparison, compare_family, summarize
from runners.reporting.tables import (
    MISSING,
    Table,
    count,
    interval,
    mean,
    mean_std,
    number,
    p_value,
    short_count,
    time,
)
from tasks.base.metrics import is_lower_better

TOLERANCE = 0.01
"""Relative difference up to which a quantity counts as matched."""
OF_ROWS = ("accuracy", "exact_match", "sequence_accuracy")
"""Metrics that chance, majority and ceiling are scores of."""

# --- comparisons ------------------------------------------------------------------------


def headline_values(results: SweepResults, setting: Setting) -> list[float]:
    """Return every seed's value in the main column."""
    split = results.headline_split(setting)
    return setting.values(split, results.headline_metric(setting)) if split else []


def against_baseline(results: SweepResults) -> dict[str, Comparison]:
    """Return the test of each setting against the baseline at the same grid point, by hash."""
    pairs = {}
    baselines = [each for each in results.settings if each.variant == results.baseline]
    for setting in results.settings:
        if setting.variant == results.baseline:
            continue
        for other in baselines:
            if setting.parameters == other.parameters:
                values = headline_values(results, setting), headline_values(results, other)
                if all(values):
                    pairs[setting.hash] = values
    return compare_family(pairs)


def best_settings(results: SweepResults) -> set[str] | None:
    """Return the hashes of the best setting and of those not distinguishable from it.

    The best has the highest mean, or the lowest where lower is better. None where no comparison
    with the best has enough seeds.
    """
    values = {s.hash: headline_values(results, s) for s in results.settings}
    signs = {
        s.hash: -1 if is_lower_better(results.headline_metric(s)) else 1 for s in results.settings
    }
    values = {key: numbers for key, numbers in values.items() if numbers}
    if len(values) < 2:
        return None
    best = max(values, key=lambda key: signs[key] * math.fsum(values[key]) / len(values[key]))
    tests = compare_family({key: (v, values[best]) for key, v in values.items() if key != best})
    if all(test.is_different is None for test in tests.values()):
        return None
    return {best} | {key for key, test in tests.items() if not test.is_different}


# --- the tables -------------------------------------------------------------------------


def main_table(results: SweepResults) -> Table:
    """Return the comparison: size, cost, accuracy in and out of distribution, test."""
    tests, best = against_baseline(results), best_settings(results)
    outside = common(results, results.headline_split)
    columns = ["model", *short_keys(results.grid_keys).values()]
    costs = _further_costs(results)
    columns += ["parameters", "MACs/token", *costs, "tokens seen", "wall time", "n"]
    beside = _beside_headline(results)
    columns += [title for title, _ in beside]
    main = len(columns)
    columns += [f"{outside or 'headline'} {titled(_metric(results))}"]
    columns += ["95 % CI", "every seed"]
    is_compared = any(setting.variant != results.baseline for setting in results.settings)
    if is_compared:
        columns += [f"p against {results.baseline}"]
    rows, bold = [], set()
    for index, setting in enumerate(results.settings):
        values, metric = headline_values(results, setting), results.headline_metric(setting)
        row = [setting.variant_label]
        row += [
            compact(setting.parameters[key]) if key in setting.parameters else MISSING
            for key in results.grid_keys
        ]
        row += [
            count(setting.first(lambda result: result.model.parameters)),
            count(setting.first(lambda result: result.model.macs_per_token)),
            *(count(read(setting)) for read in costs.values()),
            count(_tokens_seen(setting)),
            time(wall_seconds(setting)),
            _n(setting, len(values)),
            *(read(setting) for _, read in beside),
            mean_std(values, metric),
            interval(summarize(values) if values else None, metric),
            " ".join(number(value, metric) for value in values) or MISSING,
        ]
        if is_compared:
            is_baseline = setting.variant == results.baseline
            row += ["baseline" if is_baseline else p_value(tests.get(setting.hash))]
        if best is not None and setting.hash in best:
            bold.add((index, main))
        rows.append(row)
    return Table(
        name=f"{results.name}-main",
        title=f"{results.name}: {outside or 'headline'} {_metric(results)}",
        columns=columns,
        rows=rows,
        bold=frozenset(bold),
        notes=main_notes(results, tests, best is not None),
    )


def _further_costs(results: SweepResults) -> dict[str, Callable[[Setting], float | None]]:
    """Return what else models cost, as far as any run says it, by column."""

    def used(setting: Setting) -> float | None:
        """Return the work without that of tokens that have halted, in scoring the headline."""
        split = results.headline_split(setting)
        return mean(setting.values(split, "macs_per_token_used")) if split else None

    every: dict[str, Callable[[Setting], float | None]] = {
        "MACs/token used": used,
        "used parameters": lambda s: s.first(lambda result: result.model.used_parameters),
        "training FLOPs/token": lambda s: s.first(lambda r: r.model.training_flops_per_token),
        "cache bytes/token": lambda s: s.first(lambda result: result.model.cache_bytes_per_token),
        "activation bytes/step": lambda s: s.first(lambda result: result.model.activation_bytes),
    }
    return {title: read for title, read in every.items() if any(map(read, results.settings))}


def _metric(results: SweepResults) -> str:
    """Return the name of what the main column shows."""
    if any(setting.done for setting in results.settings):
        return common(results, results.headline_metric) or "accuracy"
    return results.headline_metric(results.settings[0])


def titled(metric: str) -> str:
    """Return the name of a metric, with an arrow where lower is better."""
    return f"{metric} ↓" if is_lower_better(metric) else metric


def _beside_headline(results: SweepResults) -> list[tuple[str, Callable[[Setting], str]]]:
    """Return the columns before the main one: in distribution, and perplexity where it was taken.

    Language models are compared in bits per byte, which do not depend on the tokenizer; papers
    print perplexity.
    """
    metric = _metric(results)
    outside = common(results, results.headline_split)
    inside = common(results, _inside)

    def in_distribution(setting: Setting) -> str:
        split, own = _inside(setting), results.headline_metric(setting)
        return mean_std(setting.values(split, own), own) if split else MISSING

    def perplexity(setting: Setting) -> str:
        split = results.headline_split(setting)
        return mean_std(setting.values(split, "perplexity") if split else [], "perplexity")

    columns: list[tuple[str, Callable[[Setting], str]]] = []
    done = [setting for setting in results.settings if setting.done]
    if not done or any(_has_inside(results, setting) for setting in done):
        columns.append((f"{inside or 'in distribution'} {titled(metric)}", in_distribution))
    if metric != "perplexity" and "perplexity" in results.metrics():
        columns.append((f"{outside or 'headline'} {titled('perplexity')}", perplexity))
    return columns


def _has_inside(results: SweepResults, setting: Setting) -> bool:
    """Return whether a split in distribution was scored that is not the headline itself."""
    split = _inside(setting)
    if split in (None, results.headline_split(setting)):
        return False
    return bool(setting.values(split, results.headline_metric(setting)))


def _inside(setting: Setting) -> str | None:
    return setting.first(lambda result: result.task.in_distribution_split)


def _tokens_seen(setting: Setting) -> float | None:
    return mean(result.tokens_seen for result in setting.results)


def wall_seconds(setting: Setting) -> float | None:
    """Return the mean time of the finished runs; None where none is known."""
    return mean(run.timings.wall_seconds for run in setting.done if run.timings is not None)


def _n(setting: Setting, number: int) -> str:
    planned = len(setting.runs)
    return str(planned) if number == planned else f"{number} of {planned}"


_PRECISION = {True: "exact", False: "approximate (normal)"}


def main_notes(results: SweepResults, tests: dict[str, Comparison], has_bold: bool) -> list[str]:
    """Return the notes without which the main table would mislead."""
    done = [run for run in results.runs if run.result is not None]
    found = [result for setting in results.settings for result in setting.results]
    if not found:
        return ["No run has a result yet."]
    notes = []
    weights = sorted({result.weights for result in found})
    notes.append(f"Weights scored: select {', '.join(weights)}.")
    meaning = "± sample standard deviation over seeds; CI: 95 % BCa bootstrap interval of the mean"
    if tests:
        family = f"{len(tests)} comparison{'s' if len(tests) != 1 else ''}"
        kinds = {test.is_exact for test in tests.values() if test.p is not None} or {True}
        how = " or ".join(name for exact, name in _PRECISION.items() if exact in kinds)
        meaning += f"; p: {how} two-sided Mann–Whitney, Holm-corrected over {family}"
    notes.append(meaning + ".")
    untested = {key for key, test in tests.items() if test.adjusted is None}
    if untested:
        small = ", ".join(
            f"{setting.label} ({len(headline_values(results, setting))})"
            for setting in results.settings
            if setting.hash in untested
        )
        notes.append(
            f"{TOO_SMALL}: with so few seeds ({small}) no corrected p can be below {LEVEL}, and no "
            "difference is claimed."
        )
    if is_lower_better(_metric(results)):
        notes.append(f"{_metric(results)}: lower is better.")
    if has_bold:
        notes.append("Bold: the best, and those not distinguishable from it (Holm-corrected).")
    if results.ours:
        notes.append(f"Ours, and not among the paper's: {', '.join(results.ours)}.")
    notes += baseline_notes(results)
    notes += matching_notes(results)
    notes += dict.fromkeys(note for result in found for note in result.notes)
    devices = {str(run.environment["device"]) for run in done if "device" in run.environment}
    if devices:
        notes.append(f"Hardware: {'; '.join(sorted(devices))}.")
    timed = [run.timings for run in done if run.timings is not None]
    if wall := sum(times.wall_seconds for times in timed):
        share = sum(times.evaluate_seconds for times in timed) / wall
        notes.append(f"Scoring: {share:.0%} of the runs' wall time.")
    return notes


def baseline_notes(results: SweepResults) -> list[str]:
    """Return chance, majority and ceiling of the main split and the in-distribution one.

    They are of whole rows; where the headline counts otherwise (single labels), the note names the
    metric that they belong to.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for setting in results.settings:
        for split in (
            results.headline_split(setting),
            _inside(setting),
        ):
            score = setting.done[0].score(split) if setting.done and split else None
            if split is None or score is None:
                continue
            shown = split + _of_rows(score, results.headline_metric(setting))
            for name in ("chance", "majority", "ceiling"):
                value = getattr(score, name)
                if value is not None:
                    by_name = found.setdefault(shown, {})
                    by_name.setdefault(name, set()).add(f"{value:.3f}")
    notes = []
    for split, by_name in found.items():
        words = [f"{name} {' or '.join(sorted(values))}" for name, values in by_name.items()]
        notes.append(f"{split}: {', '.join(words)}.")
    return notes


def _of_rows(score: Score, headline: str) -> str:
    counted = next((name for name in OF_ROWS if name in score.metrics), headline)
    return "" if counted == headline else f", {counted}"


def training_flops(setting: Setting) -> float | None:
    """Return the operations of a whole training, as the mean over seeds; None where not known."""
    return mean(
        result.model.training_flops_per_token * result.tokens_seen
        for result in setting.results
        if result.model.training_flops_per_token is not None
    )


_QUANTITIES: dict[str, Callable[[Setting], Any]] = {
    "parameters": lambda setting: setting.first(lambda result: result.model.parameters),
    "MACs per token": lambda setting: setting.first(lambda result: result.model.macs_per_token),
    "tokens seen": _tokens_seen,
    "training FLOPs": training_flops,
    "layers applied": lambda setting: setting.first(lambda result: result.model.num_layers),
    "d_model": lambda setting: setting.first(lambda result: result.model.d_model),
}


def matching_notes(results: SweepResults) -> list[str]:
    """Return which quantities are matched between the variants and which are not, with values.

    Variants are compared at the same grid point; of several points the worst is shown. The grid
    points of a single variant are compared with each other.
    """
    groups: dict[str, list[Setting]] = {}
    is_single = len({setting.variant for setting in results.settings}) == 1
    for setting in results.settings:
        groups.setdefault("" if is_single else str(setting.parameters), []).append(setting)
    matched, notes = [], []
    for name, read in _QUANTITIES.items():
        worst: tuple[float, list[tuple[str, Any]]] | None = None
        for settings in groups.values():
            pairs = [(s.label if is_single else s.variant, read(s)) for s in settings]
            pairs = [(variant, value) for variant, value in pairs if value is not None]
            if len(pairs) > 1:
                spread = _spread([value for _, value in pairs])
                if worst is None or spread > worst[0]:
                    worst = spread, pairs
        if worst is None:
            continue
        if worst[0] <= TOLERANCE:
            matched.append(name if worst[0] == 0 else f"{name} within {100 * worst[0]:.1f} %")
        else:
            values = ", ".join(
                f"{variant} {short_count(value) if isinstance(value, (int, float)) else value}"
                for variant, value in worst[1]
            )
            notes.append(f"Not matched: {name}: {values}.")
    what = "settings" if is_single else "variants"
    return ([f"Matched between {what}: {', '.join(matched)}."] if matched else []) + notes


def _spread(values: list[Any]) -> float:
    """Return (largest - smallest) / smallest; infinity where values differ and are not numbers."""
    if all(isinstance(value, (int, float)) for value in values):
        return (
            (max(values) - min(values)) / min(values)
            if min(values) > 0
            else float(max(values) != min(values))
        )
    return 0.0 if all(value == values[0] for value in values) else math.inf


def common(results: SweepResults, read: Callable[[Setting], Any]) -> Any:
    """Return what every setting with results agrees on, or None."""
    found = {read(setting) for setting in results.settings if setting.done}
    return found.pop() if len(found) == 1 else None
