"""Say where Triton kernels can run, and make a tensor's device the one that they run on.

Imports Triton only when asked whether it is there, so that the package works without it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os

import torch
from torch import Tensor

MIN_CAPABILITY = (8, 0)
"""Compute capability from which on Triton multiplies bfloat16, and float16 correctly."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def is_interpreted() -> bool:
    """Return whether Triton's interpreter is on, which runs kernels on the CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def why_not(device: torch.device | str, dtype: torch.dtype | None = None) -> str | None:
    """Return why Triton kernels cannot serve a device and dtype; None where they can."""
    device = torch.device(device)
    if not has_triton():
        return "Triton is not installed"
    if device.type == "cpu" and not is_interpreted():
        return "Triton needs a CUDA device, or TRITON_INTERPRET=1 to run on a CPU"
    if device.type not in ("cpu", "cuda"):
        return f"the kernels are made for CUDA devices, not {device.type}"
    problem = _cuda_problem(device.index) if device.type == "cuda" else None
    if problem is None and dtype is not None and dtype not in DTYPES:
        return f"the kernels compute in float32, float16 and bfloat16, not {dtype}"
    return problem


# Compiled code takes the answers as constants. torch.compiler.assume_constant_result sets this mark
# too, but imports all of torch._dynamo, and Triton with it, for those who never compile.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return a CUDA device's compute capability, and (0, 0) of others."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


compute_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _cuda_problem(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return f"the GPU's compute capability is {capability}, below {MIN_CAPABILITY}"
    return None


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Make the tensor's CUDA device current: Triton launches on the current one."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
