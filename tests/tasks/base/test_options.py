"""Options: described from their fields, read from words, refused with option and value as data."""

from __future__ import annotations

import dataclasses
import pickle
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

import tasks
from tasks.base import options
from tasks.base.options import OptionError, exact_text
from tasks.base.task import ExampleTask


@dataclass(frozen=True, kw_only=True)
class Toy(ExampleTask):
    """A toy."""

    name: ClassVar[str] = "toy"

    size: int = 3
    """How many rows."""
    shade: Literal["red", "blue"] = "red"
    """Which colour."""
    scale: float = 1.0
    limits: tuple[int, int] = (1, 2)
    names: dict[str, str] | None = None


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "toy", Toy)


def test_options_are_described_with_their_docstrings():
    described = options.describe(Toy)
    assert list(described) == ["size", "shade", "scale", "limits", "names"]
    assert described["shade"].doc == "Which colour."
    assert described["size"].default == 3


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"sise": 3}, ["task.sise", "unknown option", "size, shade", "did you mean 'size'?"]),
        ({"size": "3"}, ["task.size='3'", "a whole number"]),
        ({"size": 2.5}, ["task.size=2.5", "a whole number"]),
        ({"size": True}, ["task.size=True", "a whole number"]),
        ({"scale": "big"}, ["task.scale='big'", "a number"]),
        ({"shade": "blu"}, ["task.shade='blu'", "red, blue", "did you mean 'blue'?"]),
        ({"limits": [1]}, ["task.limits=[1]", "a list of 2"]),
        ({"names": {"a": 1}}, ["task.names={'a': 1}", "a mapping or null"]),
    ],
)
def test_wrong_options_name_the_option_its_value_and_what_is_allowed(given, parts):
    with pytest.raises(ValueError, match="task") as error:
        tasks.create("toy", **given)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "option", "value", "expected"),
    [
        ({"shade": "blu"}, "task.shade", "blu", "expected one of red, blue; did you mean 'blue'?"),
        ({"sise": 3}, "task.sise", 3, "unknown option; task 'toy' takes size, shade, scale"),
    ],
)
def test_an_error_carries_option_value_and_what_is_expected(given, option, value, expected):
    with pytest.raises(OptionError) as caught:
        tasks.create("toy", **given)
    # Workers of a pool send their errors pickled.
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.option, error.value) == (option, value)
        assert error.expected.startswith(expected)
        assert str(error) == f"{option}={value!r}: {error.expected}"


def test_an_error_about_a_missing_option_has_no_value():
    with pytest.raises(OptionError, match=r"^task\.train: task 'file' needs it \(text\)$") as error:
        tasks.create("file")
    assert error.value.value is dataclasses.MISSING


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    assert tasks.create("toy", scale=2, limits=[3, 4], names={"a": "b"}).scale == 2


def test_words_are_read_by_the_type_of_their_option():
    words = ["size=4", "shade=blue", "task.scale=0.5", "limits=[1, 2]", "names.x=3"]
    assert options.parse_words("toy", Toy, words) == {
        "size": 4,
        "shade": "blue",
        "scale": 0.5,
        "limits": [1, 2],
        "names": {"x": "3"},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["size"], "expected option=value"),
        (["size=1", "size=2"], "given twice"),
        (["sizes=1"], "did you mean 'size'"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        options.parse_words("toy", Toy, words)


@pytest.mark.parametrize(("word", "meant"), [("acts", "act"), ("nnoe", "none"), ("cosine", None)])
def test_only_a_word_that_is_close_is_offered(word, meant):
    hint = "" if meant is None else f"; did you mean {meant!r}?"
    assert options.nearest(word, ["none", "act"]) == hint


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
def test_exact_text(value, text):
    assert exact_text(value) == text


def test_no_digit_is_lost():
    draw = random.Random(0)
    for _ in range(1000):
        value = draw.uniform(-1, 1) * 10 ** draw.randint(-12, 12)
        assert float(exact_text(value)) == value
