"""Type hints decide what a value may be."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from moeut.options import OptionError
from runners.config.run_file import build, convert
from runners.config.schema import located
from runners.config.yaml_nodes import ConfigError, Node, parse


def node(text: str) -> Node:
    return parse(f"x: {text}", "f").value["x"]


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("3", float, 3.0),
        ("3", int | float, 3),
        ("0.5", int | float, 0.5),
        ("3", int | tuple[int, int], 3),
        ("[3, 4]", int | tuple[int, int], (3, 4)),
        ("[3, 4]", tuple[float, float], (3.0, 4.0)),
        ("[1, a]", list[Any], [1, "a"]),
        ("null", int | None, None),
        ("{a: 1}", dict[str, int], {"a": 1}),
        ("{a: [1]}", Any, {"a": [1]}),
        ("2", Literal[1, 2], 2),
        ("w", Literal["v", "w"] | None, "w"),
    ],
)
def test_values_of_a_type(text, hint, value):
    found = convert(node(text), hint, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "expected"),
    [
        ("true", int, "x=true: expected a whole number"),
        ("1", bool, "x=1: expected true or false"),
        ("3", str, "x=3: expected text"),
        ("true", Literal[1, 2], "x=true: expected one of 1, 2"),
        ("a", int | tuple[int, int], "expected a whole number or a list of 2 (a whole number)"),
        ("{a: b}", dict[str, int], "x.a='b': expected a whole number"),
        ("[1, b]", list[int] | None, "x[1]='b': expected a whole number"),
        ("[1, b]", tuple[int, int], "x[1]='b': expected a whole number"),
        ("[1]", dict[str, int], "expected a mapping"),
        ("null", int, "x=null: expected a whole number"),
        ("w", Literal["a", "b"] | None, "expected one of a, b or null"),
    ],
)
def test_values_of_another_type(text, hint, expected):
    with pytest.raises(ConfigError) as caught:
        convert(node(text), hint, "x")
    assert str(caught.value).startswith("f:1: ")
    assert expected in str(caught.value)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise OptionError("size", self.size, "must be odd")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)


def test_dataclasses_nest_and_their_checks_get_a_place():
    assert build(Outer, parse("name: a\ninner: {size: 3}", "f"), "") == Outer(
        name="a", inner=Inner(size=3)
    )
    with pytest.raises(ConfigError, match=r"^f:3: inner.size=4: must be odd$"):
        build(Outer, parse("name: a\ninner:\n  size: 4\n", "f"), "")
    with pytest.raises(ConfigError, match=r"^f:1: top.name: missing$"):
        build(Outer, parse("inner: {}", "f"), "top")


def test_an_option_is_found_by_its_path_whatever_the_sentence_says():
    section = parse("depth:\n  group: 3\nsize: 1\n", "f")

    def error(*data) -> str:
        return str(located(OptionError(*data), section, "model"))

    assert error("depth.group", 3, "size=1: no") == "f:2: model.depth.group=3: size=1: no"
    assert error("model.size", 1, "bad") == "f:3: model.size=1: bad"
    # What was left out stands nowhere: the nearest above it does.
    assert error("depth.repeats", None, "bad") == "f:1: model.depth.repeats=null: bad"
    assert error("dropout", True, "bad") == "f:1: model.dropout=true: bad"
    other = located(ValueError("something\nelse"), section, "model")
    assert str(other) == "f:1: model: something else"
