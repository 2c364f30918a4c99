"""How items are grouped into parts, and what files are named relative to."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tasks.language.documents import common_folder, grouped_by_size


def test_a_group_ends_with_the_item_that_fills_it():
    assert grouped_by_size([3, 3, 9, 1, 1], 5) == [range(0, 2), range(2, 3), range(3, 5)]
    assert grouped_by_size([], 5) == []


@given(st.lists(st.integers(0, 20)), st.integers(1, 30))
def test_groups_hold_every_item_once_in_order(sizes, limit):
    groups = grouped_by_size(sizes, limit)
    assert [number for group in groups for number in group] == list(range(len(sizes)))
    assert all(sum(sizes[number] for number in group) >= limit for group in groups[:-1])
    assert all(sum(sizes[number] for number in list(group)[:-1]) < limit for group in groups)


def test_the_common_folder_is_the_deepest():
    assert common_folder([Path("/a/b/c.txt"), Path("/a/b/d/e.txt")]) == Path("/a/b")
    assert common_folder([Path("/a/b/c.txt")]) == Path("/a/b")
    assert common_folder([Path("/a/bc/x"), Path("/a/bd/x")]) == Path("/a")
