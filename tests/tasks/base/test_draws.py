"""Draws of a row depend on its number alone, and are fair."""

import doctest

import numpy as np
import pytest

from tasks.base import draws
from tasks.base.draws import Draws


def test_docstring_example_is_true():
    result = doctest.testmod(draws)
    assert result.attempted
    assert not result.failed


def test_a_row_is_the_same_in_any_company():
    def drawn(rows):
        made = Draws("s", np.array(rows))
        return made.integers(7, 3), made.uniform(2), made.permutations(5), made.branch(1).bits(2)

    for alone, together in zip(drawn([9]), drawn([3, 9, 2**40]), strict=True):
        assert (together[1] == alone[0]).all()
        assert (together[0] != alone[0]).any()


def test_calls_streams_branches_and_parts_differ():
    one = Draws("s", np.arange(4))
    first, second = one.bits(6), one.bits(6)
    others = [Draws("t", np.arange(4)).bits(6), one.branch(0).bits(6), one.branch(1).bits(6)]
    every = [first, second, *others]
    assert len({array.tobytes() for array in every}) == len(every)
    whole = Draws("s", np.arange(4))
    whole.bits(6)
    part = whole.part(np.array([2, 3]))
    assert (part.bits(6) == second[2:]).all()


def test_numbers_are_fair():
    made = Draws("fair", np.arange(20_000))
    counts = np.bincount(made.integers(6, 3).ravel(), minlength=6)
    expected = 10_000
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees, p = 0.001
    assert abs(made.uniform(5).mean() - 0.5) < 0.005
    bounds = np.arange(1, 5)
    drawn = made.integers(bounds, 4)
    assert (drawn.max(axis=0) == bounds - 1).all()
    places = made.permutations(4)
    assert (np.sort(places, axis=1) == np.arange(4)).all()
    assert abs((places[:, 0] == 3).mean() - 0.25) < 0.015
    # Neighbouring rows and neighbouring draws are not alike.
    bits = made.integers(2, 2)
    assert abs((bits[:-1, 0] == bits[1:, 0]).mean() - 0.5) < 0.015
    assert abs((bits[:, 0] == bits[:, 1]).mean() - 0.5) < 0.015


def test_distinct_numbers_are_distinct_and_fair():
    made = Draws("distinct", np.arange(30_000)).distinct(13, 3)  # so few that many are redrawn
    assert all(len(set(row)) == 3 for row in made[:500].tolist())
    for column in made.T:
        counts = np.bincount(column, minlength=13)
        assert ((counts - 30_000 / 13) ** 2 / (30_000 / 13)).sum() < 32.9  # 12 degrees, p = 0.001
    alone = Draws("distinct", np.array([17])).distinct(13, 3)
    assert (alone[0] == made[17]).all()
    with pytest.raises(ValueError, match="4 distinct"):
        Draws("few", np.arange(1)).distinct(3, 4)
