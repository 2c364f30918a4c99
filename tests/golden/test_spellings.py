"""Options of a published code mean the same however their metadata spells them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moeut.interop import from_looped_window
from moeut.interop.arithmetic import arithmetic_config
from moeut.interop.huginn import huginn_config
from moeut.interop.looped import looped_length_config
from moeut.interop.mor import mor_config
from moeut.interop.ndr import ndr_config
from moeut.interop.ouro import ouro_config
from moeut.interop.parcae import parcae_config
from moeut.interop.recursive_reasoning import recursive_config, unwrapped
from moeut.interop.relaxed import relaxed_config
from moeut.interop.universal import universal_config

pytestmark = pytest.mark.golden

FOLDERS = (
    "huginn",
    "parcae",
    "arithmetic",
    "looped_length",
    "looped_window",
    "mor",
    "relaxed",
    "ouro",
    "trm",
    "hrm",
    "urm",
    "universal",
    "ndr",
)


def _recursive(golden, options: dict[str, Any]) -> Any:
    buffers = {f"model.inner.{name}": t for name, t in golden.part("buffer").items()}
    return recursive_config(options, unwrapped(golden.part("param") | buffers))


READERS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "huginn": lambda golden, options: huginn_config(options, vocabulary_size=11),
    "parcae": lambda golden, options: parcae_config(options, golden.part("param")),
    "arithmetic": lambda golden, options: arithmetic_config(options, golden.part("param")),
    "looped_length": lambda golden, options: looped_length_config(options, num_tokens=9),
    "looped_window": lambda golden, options: (
        (model := from_looped_window(options, golden.part("param"))).config,
        model.multiplies,
    ),
    "mor": lambda golden, options: mor_config(options),
    "relaxed": lambda golden, options: relaxed_config(options),
    "ouro": lambda golden, options: ouro_config(options),
    "trm": _recursive,
    "hrm": _recursive,
    "urm": _recursive,
    "universal": lambda golden, options: universal_config(options),
    "ndr": lambda golden, options: ndr_config(options, vocabulary_size=9, num_classes=4),
}


def respelled(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return data with each value that is no text, list or mapping changed."""
    if isinstance(value, dict):
        return {name: respelled(one, change) for name, one in value.items()}
    return value if isinstance(value, list | str) else change(value)


def as_text(value: Any) -> str:
    """Spell a value as Python prints it."""
    return str(value)


def as_numbers(value: Any) -> Any:
    """Spell whole numbers as fractions are, truth as a number, and nothing as a word."""
    if value is None:
        return "none"
    return int(value) if isinstance(value, bool) else float(value)


def as_yaml(value: Any) -> Any:
    """Spell truth and nothing as YAML does."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else value


@pytest.mark.parametrize("change", [as_text, as_numbers, as_yaml])
def test_other_spellings_are_the_same_model(golden, change) -> None:
    folder = golden.path.parent.name
    config = golden.config
    options = config.get("options", config.get("arch", config.get("args", config)))
    if "steps.mean32.backprop8" in golden.tensors:
        return  # draws of depth, without a model
    read = READERS[folder]
    assert read(golden, respelled(options, change)) == read(golden, options)
