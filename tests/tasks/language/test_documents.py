"""How items are grouped into parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.language.documents import grouped_by_size


def test_a_group_ends_with_the_item_that_fills_it():
    assert grouped_by_size([3, 3, 9, 1, 1], 5) == [range(0, 2), range(2, 3), range(3, 5)]
    assert grouped_by_size([], 5) == []


@given(st.lists(st.integers(0, 20)), st.integers(1, 30))
def test_groups_hold_every_item_once_in_order(sizes, limit):
    groups = grouped_by_size(sizes, limit)
    assert [number for group in groups for number in group] == list(range(len(sizes)))
    assert all(sum(sizes[number] for number in group) >= limit for group in groups[:-1])
    assert all(sum(sizes[number] for number in list(group)[:-1]) < limit for group in groups)
