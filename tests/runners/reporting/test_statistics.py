"""Statistics against SciPy and against cases worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from runners.reporting.statistics import (
    bootstrap_interval,
    compare_family,
    holm,
    rank_sum_p,
    smallest_p,
    summarize,
)

WILD = [0.99, 0.98, 0.35, 0.97, 0.99]
STEADY = [0.81, 0.80, 0.82, 0.79, 0.83]


def test_one_broken_seed_of_five():
    wild, steady = summarize(WILD), summarize(STEADY)
    assert (round(wild.mean, 2), round(wild.std, 2)) == (0.86, 0.28)
    assert (round(steady.mean, 2), round(steady.std, 2)) == (0.81, 0.02)
    assert [round(edge, 2) for edge in wild.interval] == [0.48, 0.99]
    # 18 of the 252 divisions, on either side: two seeds have the same score.
    assert rank_sum_p(WILD, STEADY) == pytest.approx(36 / 252)
    apart = [0.99, 0.98, 0.35, 0.97, 0.995]
    assert rank_sum_p(apart, STEADY) == stats.mannwhitneyu(apart, STEADY, method="exact").pvalue


def test_the_interval_is_scipys_and_does_not_depend_on_the_order():
    expected = stats.bootstrap(
        (np.sort(WILD),), np.mean, method="BCa", random_state=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap_interval(WILD) == (expected.low, expected.high)
    assert bootstrap_interval(WILD[::-1]) == bootstrap_interval(WILD)
    other = stats.bootstrap((np.sort(WILD),), np.mean, method="percentile").confidence_interval
    assert bootstrap_interval(WILD) != (other.low, other.high)


def test_small_and_degenerate_samples():
    one = summarize([0.3])
    assert (one.n, one.mean, one.std, one.interval) == (1, 0.3, None, None)
    two = summarize([0.0, 1.0])
    assert two.std == pytest.approx(math.sqrt(0.5))
    assert two.interval is None
    same = summarize([0.1] * 3)
    assert (same.mean, same.std, same.interval) == (0.1, 0.0, (0.1, 0.1))
    low, high = summarize([1.0, 1.0, 0.0]).interval
    assert 0.0 <= low <= high <= 1.0


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.inf]])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        summarize(values)


def test_smallest_attainable_p():
    assert smallest_p(3, 3) == pytest.approx(0.1)
    assert smallest_p(4, 4) == pytest.approx(0.0286, abs=1e-4)
    assert smallest_p(5, 5) == pytest.approx(0.0079, abs=1e-4)
    for n in (3, 4, 5):
        low, high = list(range(n)), list(range(10, 10 + n))
        assert rank_sum_p(low, high) == pytest.approx(smallest_p(n, n))


def test_ties_across_lists_have_their_exact_distribution():
    # Pool 0 0 1 | 0 1 1: of the 20 ways to choose three of six, the count of ones among them is
    # 0, 1, 2, 3 in 1, 9, 9, 1 cases. One such as observed or further out on its side: 10 of 20.
    assert rank_sum_p([0, 0, 1], [0, 1, 1]) == pytest.approx(1.0)
    assert rank_sum_p([0, 0, 0], [1, 1, 1]) == pytest.approx(0.1)
    # Five ones and three zeros, dealt 4 and 4 in 70 ways, of which 5 put four ones first.
    assert rank_sum_p([1, 1, 1, 1], [1, 0, 0, 0]) == pytest.approx(10 / 70)
    assert rank_sum_p([0.5] * 4, [0.5] * 4) == 1.0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.5, 0.4, 0.1, 0.4, 0.2], [0.7, 0.7, 0.8, 0.7, 0.3], 8 / 252),
        ([0.4, 0.4, 0.1], [0.7, 0.8, 0.9], 0.1),
        ([1, 1, 2, 3], [4, 5, 5, 2.5], None),
        ([0.0, -0.0, 1.0, 2.0], [3.0, 4.0, 1.5, 6.0], None),
    ],
)
def test_ties_within_one_list_have_their_exact_distribution(first, second, expected):
    def u(x, y, axis):
        return stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic

    exact = stats.permutation_test(
        (first, second), u, permutation_type="independent", n_resamples=np.inf
    ).pvalue
    assert rank_sum_p(first, second) == pytest.approx(exact)
    assert rank_sum_p(second, first) == pytest.approx(exact)
    assert expected is None or exact == pytest.approx(expected)


def test_a_comparison_says_whether_its_p_is_exact():
    ten, eleven = [float(n) for n in range(10)], [n + 0.5 for n in range(11)]
    tests = compare_family({"ten": (ten, ten), "eleven": (eleven, eleven)})
    assert (tests["ten"].is_exact, tests["eleven"].is_exact) == (True, False)


def test_many_seeds_use_the_normal_approximation():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=30).tolist(), rng.normal(1, size=30).tolist()
    expected = stats.mannwhitneyu(first, second, method="asymptotic").pvalue
    assert rank_sum_p(first, second) == expected


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    assert holm([0.02, 0.001]) == pytest.approx([0.02, 0.002])


def test_three_seeds_carry_no_test():
    tests = compare_family({"a": ([1.0, 1.0, 0.99], [0.0, 0.01, 0.02])})
    assert tests["a"].p is None
    assert tests["a"].is_different is None
    assert tests["a"].difference == pytest.approx(0.9866, abs=1e-3)


def test_the_correction_counts_when_n_is_judged():
    high, low = [0.9, 0.91, 0.92, 0.93], [0.1, 0.11, 0.12, 0.13]
    assert compare_family({"a": (high, low)})["a"].is_different is True
    both = compare_family({"a": (high, low), "b": (high, low)})  # 2 × 0.029 is above 0.05
    assert [test.is_different for test in both.values()] == [None, None]


def test_a_family_of_five_seeds():
    tests = compare_family(
        {"better": ([0.9, 0.91, 0.92, 0.93, 0.94], STEADY), "wild": (WILD, STEADY)}
    )
    assert tests["better"].p == pytest.approx(2 / 252)
    assert tests["better"].adjusted == pytest.approx(4 / 252)
    assert tests["better"].is_different is True
    assert tests["wild"].is_different is False
    assert tests["wild"].adjusted == tests["wild"].p


def test_an_untestable_pair_still_counts_in_the_family():
    five = [0.9, 0.91, 0.92, 0.93, 0.94]
    tests = compare_family({"a": (five, STEADY), "b": ([0.9], STEADY)})
    assert tests["b"].adjusted is None
    assert tests["a"].adjusted == pytest.approx(4 / 252)
