"""Which golden folders are compared: all of them, but for models that are not built."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.golden

FAMILIES = ("moeut_release", "training_code", "devil", "ndr")
FOLDERS_NOT_BUILT = (*("tasks",),)
"""Golden folders of recurrences that have no model here yet."""


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
