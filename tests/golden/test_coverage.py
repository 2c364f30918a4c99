"""Which golden folders are compared: all of them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.golden

FAMILIES = ("moeut_release", "training_code", "devil", "ndr")
"""Folders that must be compared even where their files are missing."""
NOT_COUNTED = ("test_reader_errors", "test_restated", "test_spellings", "test_triton")
"""Modules that walk folders without comparing a model's numbers, or with the kernels alone, which
not every machine can run."""


def test_every_folder_is_compared(golden_dir) -> None:
    """A test module says in ``FOLDERS`` which folders it walks."""
    found = {path.relative_to(golden_dir).parts[0] for path in golden_dir.rglob("*.safetensors")}
    compared: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        if path.stem not in NOT_COUNTED:
            module = importlib.import_module(path.stem)
            compared |= set(getattr(module, "FOLDERS", ()))
    assert found
    assert found | set(FAMILIES) <= compared
