"""Which golden files are compared: all of them, but for models that are not built."""

from __future__ import annotations

import ast
import fnmatch
from pathlib import Path

import pytest

import moeut
from moeut.interop import from_ndr, from_transformer_generalization

pytestmark = pytest.mark.golden

FAMILIES = ("moeut_release", "training_code", "devil", "ndr")
NOT_BUILT = ("sut_*",)

FOLDERS_NOT_BUILT = (
    *("mor",),
    *("relaxed", "tasks"),
)
"""Golden folders of recurrences that have no model here yet."""

IMPORTERS = {
    "moeut_release": moeut.from_release,
    "training_code": moeut.from_training_code,
    "devil": from_transformer_generalization,
    "ndr": from_ndr,
}


def family(golden) -> str:
    return next(part for part in golden.path.parts if part in FAMILIES)


def test_only_models_that_are_not_built_are_left_out(all_golden) -> None:
    left_out = {golden.path.name for golden in all_golden if golden.not_built}
    for name in left_out:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in NOT_BUILT), name
    compared = {golden.path.name for golden in all_golden if not golden.not_built}
    for name in compared:
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in NOT_BUILT), name
    assert {family(golden) for golden in all_golden if not golden.not_built} == set(FAMILIES)


def test_every_folder_is_compared_or_named(golden_dir) -> None:
    """A test module says in ``FOLDERS`` which folders it walks."""
    found = {path.relative_to(golden_dir).parts[0] for path in golden_dir.rglob("*.safetensors")}
    compared: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOLDERS":
                compared |= set(ast.literal_eval(node.value))
    assert found - compared <= set(FOLDERS_NOT_BUILT)
    assert not compared & set(FOLDERS_NOT_BUILT)
    assert set(FAMILIES) <= compared


def test_importers_refuse_what_is_left_out_by_name(all_golden) -> None:
    for golden in all_golden:
        if golden.not_built:
            with pytest.raises(ValueError, match=f"transformer.variant='{golden.not_built}'"):
                IMPORTERS[family(golden)](golden.options, golden.part("param"))
