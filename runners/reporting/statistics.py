"""Statistics over seeds, which are few and often bimodal: no more certain than n allows.

Differences are tested by the rank sum (Mann–Whitney), with the exact permutation distribution given
the ties, up to some ten seeds a side, and beyond in the normal approximation, which the report
names. With n and m seeds no two-sided p-value can be below 2 / C(n + m, n): 0.10
for 3 against 3, 0.029 for 4, 0.0079 for 5. Where even that, times the number of comparisons, is
above the level, no test is made: ``n too small to test``.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""p-values below count as a difference."""
CONFIDENCE = 0.95
RESAMPLES = 9999
EXACT_UP_TO = 200_000
"""Most permutations that are enumerated; beyond, the normal approximation is used."""
REMEMBERED = 20_000
"""Intervals, and tests, that are remembered: each of a report's tables and figures asks anew."""
TOO_SMALL = "n too small to test"


@dataclass(frozen=True)
class Summary:
    """Mean, spread and interval of the values of several seeds."""

    values: tuple[float, ...]
    mean: float
    std: float | None
    """Sample standard deviation (ddof = 1); None for one value."""
    interval: tuple[float, float] | None
    """Bootstrap confidence interval of the mean; None below three values."""

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)


@dataclass(frozen=True)
class Comparison:
    """A test of one list of values against another, as one of a family."""

    p: float | None
    """Two-sided p-value; None where none can be small enough."""
    adjusted: float | None
    """p after Holm's correction over the family."""
    difference: float
    """Mean minus the other's mean."""
    is_exact: bool = True
    """Whether p is of the permutation distribution, not of the normal approximation to it."""

    @property
    def is_different(self) -> bool | None:
        """Whether the two differ at ``LEVEL``; None where n is too small to say."""
        return None if self.adjusted is None else self.adjusted < LEVEL


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and interval of at least one finite value.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    mean, std = mean_and_std(values)
    return Summary(tuple(map(float, values)), mean, std, bootstrap_interval(values))


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation (ddof = 1; None for one value) as ``summarize`` does.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"values={list(values)}: must be at least one finite number")
    array = np.asarray(values, dtype=float)
    same = len(set(values)) == 1
    # The mean of equal numbers is that number; a rounded sum may miss it.
    mean = float(array[0]) if same else float(array.mean())
    return mean, None if len(values) < 2 else 0.0 if same else float(array.std(ddof=1))


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the bias-corrected, accelerated bootstrap interval (95 %) of the mean.

    None below three values, where resampling says nothing; a point where all values are equal.
    The resamples are drawn with a fixed seed, so the same values give the same interval.
    """
    if len(values) < 3:
        return None
    if len(set(values)) == 1:
        return float(values[0]), float(values[0])
    return _bootstrap(tuple(sorted(map(float, values))))


@functools.lru_cache(maxsize=REMEMBERED)
def _bootstrap(values: tuple[float, ...]) -> tuple[float, float] | None:
    from scipy import stats  # a second to import, which --help need not wait for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (np.asarray(values),),
            np.mean,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="BCa",
            random_state=np.random.default_rng(0),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    return None


def smallest_p(n: int, m: int) -> float:
    """Return the smallest two-sided p-value that n against m values can reach."""
    return min(1.0, 2 / math.comb(n + m, n))


def is_enumerated(n: int, m: int) -> bool:
    """Return whether n against m values are tested over every way to divide them."""
    return math.comb(n + m, n) <= EXACT_UP_TO


def rank_sum_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann–Whitney test, exact also under ties.

    Where all values differ it is ``scipy.stats.mannwhitneyu(method="exact")``. Where any two are
    equal, in one list or across both, equal values share their mean rank, and the distribution is
    that of the rank sum over every way to divide the pooled values. Past ``EXACT_UP_TO`` ways it is
    the normal approximation, with its correction for ties.
    """
    return _rank_sum(tuple(map(float, first)), tuple(map(float, second)))


@functools.lru_cache(maxsize=REMEMBERED)
def _rank_sum(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    from scipy import stats

    if not is_enumerated(len(first), len(second)):
        return float(stats.mannwhitneyu(first, second, method="asymptotic").pvalue)
    pooled = np.asarray(first + second)
    num_distinct = len(np.unique(pooled))
    if num_distinct == len(pooled):
        return float(stats.mannwhitneyu(first, second, method="exact").pvalue)
    if num_distinct == 1:
        return 1.0
    ranks = stats.rankdata(pooled)
    outcome = stats.permutation_test(
        (ranks[: len(first)], ranks[len(first) :]),
        lambda x, y, axis: np.sum(x, axis=axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=np.inf,
        alternative="two-sided",
    )
    return float(outcome.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure, in their order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - position)))
        adjusted[index] = highest
    return adjusted


def compare_family(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> dict[str, Comparison]:
    """Test each pair of lists of values, corrected over all pairs.

    A pair counts in the correction whether or not it can be tested. It is left untested where its
    smallest possible p-value, times the number of pairs, is not below ``LEVEL``.
    """
    count = len(pairs)
    raw: dict[str, float] = {}
    for name, (first, second) in pairs.items():
        if first and second and smallest_p(len(first), len(second)) * count < LEVEL:
            raw[name] = rank_sum_p(first, second)
    # Untested pairs enter as 1, which keeps the family at its full size.
    names = list(pairs)
    adjusted = dict(zip(names, holm([raw.get(name, 1.0) for name in names]), strict=True))
    return {
        name: Comparison(
            p=raw.get(name),
            adjusted=adjusted[name] if name in raw else None,
            difference=_mean(first) - _mean(second),
            is_exact=is_enumerated(len(first), len(second)),
        )
        for name, (first, second) in pairs.items()
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
