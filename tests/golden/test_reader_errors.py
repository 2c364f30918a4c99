"""What a reader does not understand is one line: where it stands, and what may stand there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_spellings import FOLDERS as SPELLED
from test_spellings import READERS

from moeut import interop
from moeut.interop import mapping
from moeut.interop.release import release_config
from moeut.interop.training_code import training_code_config
from moeut.interop.transformer_generalization import transformer_generalization_config

pytestmark = pytest.mark.golden

FOLDERS = (*SPELLED, "devil", "moeut_release", "training_code")
CONFIGS: dict[str, Callable[[Any, dict[str, Any]], Any]] = READERS | {
    "devil": lambda golden, options: transformer_generalization_config(
        options, source_vocabulary_size=9, vocabulary_size=9
    ),
    "moeut_release": lambda golden, options: release_config(options),
    "training_code": lambda golden, options: training_code_config(options, vocabulary_size=9),
}
MODELS: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]] = {
    "huginn": interop.from_huginn,
    "parcae": interop.from_parcae,
    "arithmetic": interop.from_arithmetic,
    "looped_length": interop.from_looped_length,
    "looped_window": interop.from_looped_window,
    "mor": interop.from_mor,
    "relaxed": interop.from_relaxed,
    "ouro": interop.from_ouro,
    "trm": interop.from_recursive_reasoning,
    "hrm": interop.from_recursive_reasoning,
    "urm": interop.from_recursive_reasoning,
    "universal": interop.from_universal,
    "ndr": interop.from_ndr,
    "devil": interop.from_transformer_generalization,
    "moeut_release": interop.from_release,
    "training_code": interop.from_training_code,
}
NO_VALUE = object()
VALUES = (NO_VALUE, "banana", -1, 0, 2.5, None, [1], {"a": 1}, float("inf"))
"""What is put in the place of an option; without a value the option is left out."""


def folder_of(golden) -> str:
    return golden.path.parent.name


def options_of(golden) -> dict[str, Any] | None:
    """Return the options of the model, or None: the file has none, or is not the folder's first."""
    siblings = sorted(golden.path.parent.glob("*.safetensors"))
    config = golden.config
    is_first = golden.path == siblings[0] and folder_of(golden) != "pure64"
    return config.get("options", config.get("arch", golden.options)) if is_first else None


def places(options: dict[str, Any], *before: str) -> Iterator[tuple[str, ...]]:
    for name, value in options.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from places(value, *before, name)


def put(options: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(options)
    *outer, name = place
    section = changed
    for key in outer:
        section = section[key]
    if value is NO_VALUE:
        del section[name]
    else:
        section[name] = value
    return changed


def complaint(read: Callable[..., Any], *given: Any) -> str | None:
    """Return what a reader says, or None: it has read; any other error is the test's."""
    try:
        read(*given)
    except ValueError as error:
        return str(error)
    return None


def assert_clear(said: str, where: object) -> None:
    assert "\n" not in said, (where, said)
    assert len(said) <= 900, (where, said)
    assert "=" in said or "missing" in said or "state_dict[" in said or "not known" in said, (
        where,
        said,
    )


def test_options_that_are_wrong(golden) -> None:
    options = options_of(golden)
    if options is None:
        return
    refused = 0
    for place in places(options):
        for value in VALUES:
            changed = put(options, place, value)
            said = complaint(CONFIGS[folder_of(golden)], golden, changed)
            if said is not None:
                assert_clear(said, (place, value))
                refused += 1
    assert refused >= 10


def changes(tensor: torch.Tensor) -> dict[str, Any]:
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    return {
        "grown": torch.cat((rows, rows[:1])),
        "flat": tensor.flatten()[:-1],
        "nested": tensor[None],
        "empty": tensor.new_zeros(0),
        "of whole numbers": tensor.long(),
        "nothing": None,
    }


def test_tensors_that_are_wrong(golden) -> None:
    options = options_of(golden)
    if options is None:
        return
    buffers = {f"model.inner.{name}": t for name, t in golden.part("buffer").items()}
    theirs = golden.part("param") | (buffers if folder_of(golden) in ("trm", "hrm", "urm") else {})
    read = MODELS[folder_of(golden)]
    extra = {"extra.weight": torch.zeros(2)}
    missing = [{}] + [{n: t for n, t in theirs.items() if n != left_out} for left_out in theirs]
    refusals = [complaint(read, options, tensors) for tensors in missing]
    for said in refusals:
        if said is not None:
            assert_clear(said, "missing")
    # Value embeddings may be left out, a head for a tied one, and what no layer uses.
    assert sum(said is None for said in refusals) <= 4
    said = complaint(read, options, theirs | extra)
    assert said is not None
    assert "not known: extra.weight" in said
    for name in list(theirs)[:: max(len(theirs) // 4, 1)]:
        for how, changed in changes(theirs[name]).items():
            said = complaint(read, options, theirs | {name: changed})
            if said is not None:
                assert_clear(said, (name, how))


def test_sizes_that_no_memory_holds_are_refused_before_they_are_built(golden) -> None:
    if folder_of(golden) != "parcae":
        return
    options = golden.config["options"] | {"intermediate_size": 10**12}
    with pytest.raises(ValueError, match=r"state_dict\[.*\]: .* the options"):
        interop.from_parcae(options, golden.part("param"))


def test_long_lists_of_names_are_cut_short() -> None:
    maps = [mapping.rename(f"tensor.{number:02}", f"ours.{number}") for number in range(20)]
    with pytest.raises(ValueError, match=r"missing: tensor\.00, .*, tensor\.07 and 12 more"):
        mapping.to_ours(maps, {})
