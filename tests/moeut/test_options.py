"""Checked options, on a small tree of their own."""

from __future__ import annotations

import pickle
import sys
import types
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from moeut.blocks.attention import ATTENTION
from moeut.blocks.feed_forward import FEED_FORWARD
from moeut.options import Kinds, OptionError, Options, derived, nearest, one_of
from moeut.recurrence.controller import HALTING
from moeut.recurrence.schedule import Depth


@dataclass(frozen=True, kw_only=True)
class Lamp(Options):
    pass


@dataclass(frozen=True, kw_only=True)
class Bulb(Lamp):
    kind: ClassVar[str] = "bulb"
    watts: int


@dataclass(frozen=True, kw_only=True)
class Tube(Lamp):
    kind: ClassVar[str] = "tube"
    length: float = 1.0
    colour: Literal["white", "warm"] = "white"


@dataclass(frozen=True, kw_only=True)
class Table(Options):
    width: int


@dataclass(frozen=True, kw_only=True)
class Room(Options):
    table: Table
    lamp: Lamp = one_of({"bulb": Bulb, "tube": Tube}, Tube)
    spare: Table | None = None
    doors: int = derived()


def refused(data) -> OptionError:
    with pytest.raises(OptionError) as caught:
        Room.from_dict(data)
    return caught.value


def test_plain_data_goes_out_and_back_in():
    room = Room(table=Table(width=3), lamp=Bulb(watts=60), doors=2)
    data = room.to_dict()
    assert data == {
        "table": {"width": 3},
        "lamp": {"kind": "bulb", "watts": 60},
        "spare": None,
        "doors": 2,
    }
    assert Room.from_dict(data) == room


def test_a_bare_word_is_short_for_its_kind():
    table = {"width": 1}
    assert Room.from_dict({"table": table, "lamp": "tube"}).lamp == Tube()
    assert Room.from_dict({"table": table, "lamp": {"length": 2.0}}).lamp == Tube(length=2.0)


@pytest.mark.parametrize(
    ("change", "option", "value", "parts"),
    [
        ({"lmap": 1}, "lmap", 1, ["model takes table, lamp, spare, doors", "mean 'lamp'?"]),
        ({"lamp": "tub"}, "lamp.kind", "tub", ["bulb, tube", "did you mean 'tube'?"]),
        ({"lamp": 3}, "lamp", 3, ["mapping", "bulb, tube"]),
        (
            {"lamp": {"kind": "tube", "watts": 60}},
            "lamp.watts",
            60,
            ["kind 'tube' takes length, colour", "an option of kind 'bulb'"],
        ),
        ({"lamp": {"kind": "bulb"}}, "lamp.watts", None, ["missing", "a whole number"]),
        ({"lamp": {"kind": "bulb", "watts": True}}, "lamp.watts", True, ["a whole number"]),
        ({"lamp": {"colour": "wram"}}, "lamp.colour", "wram", ["white, warm", "mean 'warm'?"]),
        ({"lamp": {"length": "long"}}, "lamp.length", "long", ["a number"]),
        ({"table": 3}, "table", 3, ["a mapping of width"]),
        ({"table": {"widht": 3}}, "table.widht", 3, ["unknown; model.table takes width"]),
        ({"spare": {"width": 1.5}}, "spare.width", 1.5, ["a whole number"]),
        ({"doors": "two"}, "doors", "two", ["a whole number"]),
    ],
)
def test_a_refusal_gives_path_value_and_what_is_allowed(change, option, value, parts):
    error = refused({"table": {"width": 1}} | change)
    assert (error.option, error.value) == (option, value)
    assert all(part in error.expected for part in parts), error.expected
    assert str(error) == f"{option}={value!r}: {error.expected}"


def test_construction_checks_kinds_and_types():
    with pytest.raises(OptionError, match=r"lamp=.*bulb or tube"):
        Room(table=Table(width=1), lamp=Table(width=1))
    with pytest.raises(OptionError, match=r"length='x': expected a number"):
        Tube(length="x")
    assert Tube(length=2).length == 2


def test_an_error_moves_one_level_deeper_and_between_processes():
    error = OptionError("lamp.watts", 1, "must be 2").under("model")
    assert str(error) == "model.lamp.watts=1: must be 2"
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.option, copy.value, copy.expected) == (error.option, 1, "must be 2")


@pytest.mark.parametrize(("word", "meant"), [("acts", "act"), ("nnoe", "none"), ("cosine", None)])
def test_only_a_word_that_is_close_is_offered(word, meant):
    hint = "" if meant is None else f"; did you mean {meant!r}?"
    assert nearest(word, ["none", "act"]) == hint


def test_a_kind_is_imported_when_it_is_taken(monkeypatch):
    kinds: Kinds[Lamp] = Kinds({"bulb": Bulb, "candle": "far.away:Candle"})
    assert (list(kinds), len(kinds), "candle" in kinds, "torch" in kinds) == (
        ["bulb", "candle"],
        2,
        True,
        False,
    )
    assert kinds["bulb"] is Bulb
    assert "far.away" not in sys.modules
    with pytest.raises(KeyError):
        kinds["torch"]
    with pytest.raises(AttributeError, match="no kind has a class 'Torch'; there are bulb, candle"):
        kinds.export("Torch")

    class Candle(Lamp):
        kind: ClassVar[str] = "candle"

    far = types.ModuleType("far.away")
    far.Candle = Candle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "far.away", far)
    assert kinds["candle"] is kinds.export("Candle") is Candle
    assert list(kinds.values()) == [Bulb, Candle]


@pytest.mark.parametrize("kinds", [ATTENTION, FEED_FORWARD, HALTING])
def test_each_place_has_the_kind_of_its_name(kinds):
    assert {name: cls.kind for name, cls in kinds.items()} == {name: name for name in kinds}
    for cls in kinds.values():
        assert kinds.export(cls.__name__) is cls


def test_a_size_that_pytorch_cannot_hold_is_refused():
    with pytest.raises(OptionError, match="group=9223372036854775808: expected at most 92233720"):
        Depth(group=2**63, repeats=1)
