"""Which layer a stack applies when."""

from __future__ import annotations

import pytest

from moeut.options import OptionError
from moeut.recurrence.schedule import Depth


@pytest.mark.parametrize(
    ("depth", "schedule"),
    [
        (Depth(group=3, repeats=1), [0, 1, 2]),
        (Depth(group=1, repeats=3), [0, 0, 0]),
        (Depth(group=2, repeats=2), [0, 1, 0, 1]),
        (Depth(group=2, repeats=2, order="sequence"), [0, 0, 1, 1]),
        (Depth(prelude=1, group=2, repeats=2, coda=2), [0, 1, 2, 1, 2, 3, 4]),
        (Depth(prelude=2, group=2, repeats=2, coda=1, order="sequence"), [0, 1, 2, 2, 3, 3, 4]),
    ],
)
def test_schedule_is_prelude_then_repeated_group_then_coda(depth, schedule):
    assert depth.schedule() == schedule
    assert depth.num_applications == len(schedule)
    assert depth.num_distinct == len(set(schedule))


def test_number_of_repeats_can_be_another():
    depth = Depth(prelude=1, group=2, repeats=2, coda=1)
    assert depth.schedule(1) == [0, 1, 2, 3]
    assert depth.schedule(3) == [0, 1, 2, 1, 2, 1, 2, 3]
    for wrong in (0, -1, True, 1.0):
        with pytest.raises(OptionError, match="num_repeats="):
            depth.schedule(wrong)


def test_only_repeats_share_layers():
    assert Depth(group=1, repeats=2).is_shared
    assert not Depth(prelude=1, group=4, repeats=1, coda=1).is_shared


@pytest.mark.parametrize(
    ("options", "option"),
    [({"group": 0}, "group"), ({"repeats": 0}, "repeats"), ({"prelude": -1}, "prelude")],
)
def test_sizes_out_of_range_are_refused(options, option):
    with pytest.raises(OptionError) as caught:
        Depth(**{"group": 1, "repeats": 1} | options)
    assert caught.value.option == option
    assert caught.value.value == options[option]


@pytest.mark.parametrize("one", ["group", "repeats"])
def test_an_order_without_effect_is_refused(one):
    with pytest.raises(OptionError, match=f"order='sequence': has no effect with {one}=1;"):
        Depth(**{"group": 2, "repeats": 2, "order": "sequence"} | {one: 1})
