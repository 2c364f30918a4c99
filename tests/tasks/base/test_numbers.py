"""Numbers as text that stands for them alone."""

import random

import pytest

from tasks.base.numbers import exact_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-05"),
        (0.5, "0.5"),
        (3, "3"),
        (3.0, "3"),
        (1234567, "1234567"),
        (1234567.0, "1234567.0"),
        (1e6, "1e+06"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_text(value, text):
    assert exact_text(value) == text


def test_no_digit_is_lost():
    draw = random.Random(0)
    for _ in range(1000):
        value = draw.uniform(-1, 1) * 10 ** draw.randint(-12, 12)
        assert float(exact_text(value)) == value
