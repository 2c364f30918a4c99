"""Shared fixtures: one thread per test process, and the external inputs of parity tests."""

import importlib.metadata
import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

# Autograd counts the devices in its first backward pass. A CUDA build that was asked for its fake
# tensors before counts a device where there is none, and its threads then forbid forked ranks.
torch.ones((), requires_grad=True).backward()


def _interpreter_works() -> bool:
    """Return whether Triton's interpreter can loop: before 3.7 it could not with NumPy 2.4."""
    try:
        triton = importlib.metadata.version("triton").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    numpy = importlib.metadata.version("numpy").split(".")[:2]
    return [*map(int, triton)] >= [3, 7] or [*map(int, numpy)] < [2, 4]


# Without a GPU, Triton kernels run in Triton's interpreter, which has to be on when they are
# defined.
if not torch.cuda.is_available() and _interpreter_works():
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
