"""The restated equations give the numbers of the golden files, where those have the option."""

from __future__ import annotations

import fnmatch
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.golden

FOLDERS = {
    "trm": "recursive",
    "hrm": "recursive",
    "urm": "recursive",
    "huginn": "huginn",
    "parcae": "parcae",
    "arithmetic": "arithmetic",
    "mor": "mor",
    "relaxed": "relaxed",
    "looped_length": "looped_length",
    "looped_window": "looped_window",
}
"""Which module restates a folder."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_restated_numbers_are_the_published_ones(
    folder, golden_dir: Path, read_golden: Any
) -> None:
    restated = importlib.import_module(f"restated.{FOLDERS[folder]}")
    files = sorted((golden_dir / folder).glob("*.safetensors"))
    assert files
    for path in files:
        golden = read_golden(path)
        if golden.config.get("precision") != "float64":
            continue  # rounded as the code rounds, or draws alone
        found = restated.numbers(golden.config, golden.tensors)
        compared = 0
        for name, wanted in golden.tensors.items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in restated.GIVEN):
                continue
            assert name in found, (path.name, name)
            bound = 1e-9 if "grad" in name else 1e-6 if wanted.dtype == torch.float32 else 1e-10
            distance = (found[name].double().reshape(wanted.shape) - wanted.double()).abs().max()
            assert distance <= bound, (path.name, name)
            compared += 1
        assert compared >= 3
