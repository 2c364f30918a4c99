"""A tensor's device as the kernels need it: made current, and its compute capability."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor


@functools.cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return a CUDA device's compute capability, and (0, 0) of others."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


# Compiled code takes the answer as a constant; see moeut.ops.backend.
compute_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Make the tensor's CUDA device current: Triton launches on the current one."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
