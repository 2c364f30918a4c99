"""Option checks and equal shares."""

import doctest
from types import SimpleNamespace

import pytest

from tasks.base import generated
from tasks.base.generated import check_range, equal_shares


def test_examples_of_the_docstrings():
    result = doctest.testmod(generated)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize("total", [0, 1, 7, 100, 1111])
def test_shares_add_up_and_are_equal_where_there_is_room(total):
    capacities = [5, 1000, 11, 100]
    if total > sum(capacities):
        pytest.fail("the test itself is wrong")
    shares = equal_shares(total, capacities)
    assert sum(shares) == total
    assert all(share <= capacity for share, capacity in zip(shares, capacities, strict=True))
    open_shares = [s for s, c in zip(shares, capacities, strict=True) if s < c]
    assert not open_shares or max(shares) - min(open_shares) <= 1


def test_more_rows_than_there_are():
    with pytest.raises(ValueError, match="12 rows wanted, and there are 11"):
        equal_shares(12, [5, 6])


def test_ranges_become_pairs():
    task = SimpleNamespace(train=[1, 4])
    check_range(task, "train", minimum=1)
    assert task.train == (1, 4)
