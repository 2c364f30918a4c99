"""A batch is made while the step before it runs, once, and in order."""

import threading

import pytest

from runners.training.prefetch import Prefetch


def test_the_next_is_made_while_this_one_is_used():
    made, next_made = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 4:
            next_made.set()
        return step * 10

    ahead = Prefetch(make, num_steps=6)
    assert ahead.get(3) == 30
    assert next_made.wait(10)  # nobody has asked for it
    assert [ahead.get(4), ahead.get(5)] == [40, 50]
    assert made == [3, 4, 5]  # nothing twice, nothing past the last step


def test_any_step_can_be_asked_for():
    ahead = Prefetch(lambda step: step, num_steps=100)
    assert [ahead.get(step) for step in (0, 7, 7, 2, 200)] == [0, 7, 7, 2, 200]


def test_an_error_comes_with_its_step():
    def make(step):
        if step == 1:
            raise OSError("a token file is cut short")
        return step

    ahead = Prefetch(make, num_steps=3)
    assert ahead.get(0) == 0
    with pytest.raises(OSError, match="cut short"):
        ahead.get(1)
