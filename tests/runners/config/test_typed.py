"""Type hints decide what a value may be."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from runners.config.typed import build, convert, describe, relocate
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
        ("[1, 2, 3]", tuple[int, ...], (1, 2, 3)),
        ("[1, a]", list[Any], [1, "a"]),
        ("null", int | None, None),
        ("{a: 1}", dict[str, int], {"a": 1}),
        ("{a: [1]}", Any, {"a": [1]}),
        ("a/b", Path, Path("a/b")),
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
        ("3", str, "x=3: expected a word"),
        ("true", Literal[1, 2], "x=true: expected one of 1, 2"),
        ("a", int | tuple[int, int], "expected a whole number or a list of a whole number"),
        ("{a: b}", dict[str, int], "x.a='b': expected a whole number"),
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
            raise ValueError(f"size={self.size}: must be odd")


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


def test_complaints_find_the_option_they_name():
    section = parse("group_size: 3\nsize: 1\n", "f")

    def place(text: str) -> str:
        return str(relocate(ValueError(text), section, "model"))

    assert place("group_size=3: must divide") == "f:1: model.group_size=3: must divide"
    assert place("decoder.group_size=3: bad") == "f:1: model.group_size=3: bad"
    assert place("model: size=1: bad") == "f:2: model.size=1: bad"
    assert place("something\nelse") == "f:1: model: something else"
    assert place("other=3: bad") == "f:1: model: other=3: bad"


def test_hints_in_words():
    assert describe(int | None) == "a whole number or null"
    assert describe(list[str]) == "a list of a word"
    assert describe(Inner) == "a mapping"
