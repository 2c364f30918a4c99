"""Shared fixtures: one thread per test process, and the external inputs of parity tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

# Without a GPU, Triton kernels run in Triton's interpreter, which has to be on when they are
# defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _inputs(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if value and Path(value).is_dir():
        return Path(value)
    message = f"{variable} names no folder with {what}"
    if os.environ.get("MOEUT_REQUIRE_INPUTS") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder with numbers computed by the published code."""
    return _inputs("MOEUT_GOLDEN", "numbers of the published code")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the official SCAN and COGS files."""
    return _inputs("MOEUT_DATA", "official data files")
