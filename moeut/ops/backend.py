"""Choose which implementation computes the expert operations, and say what cannot serve and why.

Finds out whether Triton is installed without importing it, so that the package works without it.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

from moeut.options import nearest

logger = logging.getLogger(__name__)

BACKENDS = {
    "reference": "a loop over experts, differentiated by autograd; slow, any dtype",
    "grouped": "plain PyTorch with a backward of its own; the fast CPU path, works on any device",
    "triton": "GPU kernels; float32, float16 and bfloat16, NVIDIA from compute capability 8.0 on",
}

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

MIN_CAPABILITY = (8, 0)
"""Compute capability from which on Triton multiplies bfloat16, and float16 correctly."""


def available_backends() -> tuple[str, ...]:
    """Return the names that ``resolve_backend`` accepts on this machine, besides ``auto``."""
    serves = any(why_not(device) is None for device in ("cpu", "cuda"))
    return tuple(name for name in BACKENDS if name != "triton" or serves)


def resolve_backend(
    backend: str = "auto", device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> str:
    """Return the name of the backend to use on a device, for tensors of a dtype.

    An argument other than ``auto`` wins over the environment variable ``MOEUT_BACKEND``, which wins
    over the automatic choice. Raises ValueError for a name that is unknown or cannot serve here.
    """
    if backend != "auto":
        return _check(backend, f"backend={backend!r}", device, dtype)
    from_environment = os.environ.get("MOEUT_BACKEND") or "auto"
    if from_environment != "auto":
        return _check(from_environment, f"MOEUT_BACKEND={from_environment!r}", device, dtype)
    chosen, reason = _choose(torch.device(device), dtype)
    if not torch.compiler.is_compiling():  # logging would break a compiled graph
        _announce(torch.device(device).type, chosen, reason)
    return chosen


def can_look(tensor: torch.Tensor) -> bool:
    """Return whether reading a tensor's values waits for nothing: on the CPU, and eagerly.

    On a GPU it would wait for all that was launched, and cannot be captured in a CUDA graph; in a
    compiled graph it would break the graph.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def compute_dtype(like: torch.Tensor) -> torch.dtype:
    """Return the dtype to compute in on tensors like this one: autocast's, but of float64 never."""
    device = like.device.type
    is_autocast = torch.is_autocast_enabled(device) and like.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_autocast else like.dtype


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
    if problem is None and dtype is not None and dtype not in TRITON_DTYPES:
        return f"the kernels compute in float32, float16 and bfloat16, not {dtype}"
    return problem


# Compiled code takes the answers as constants. torch.compiler.assume_constant_result sets this mark
# too, but imports all of torch._dynamo, and Triton with it, for those who never compile.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _cuda_problem(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return f"the GPU's compute capability is {capability}, below {MIN_CAPABILITY}"
    return None


def _choose(device: torch.device, dtype: torch.dtype | None) -> tuple[str, str]:
    """Return the fastest backend and why it was chosen."""
    if device.type == "cpu":  # the interpreter of Triton is for tests
        return "grouped", "the fastest"
    reason = why_not(device, dtype)
    return ("triton", "the fastest") if reason is None else ("grouped", reason)


def _check(name: str, where: str, device: torch.device | str, dtype: torch.dtype | None) -> str:
    if name == "triton":
        reason = why_not(device, dtype)
        if reason is not None:
            allowed = ", ".join(("auto", *(one for one in BACKENDS if one != name)))
            raise ValueError(f"{where}: cannot serve, {reason}; expected one of {allowed}")
    if name in BACKENDS:
        return name
    names = ("auto", *BACKENDS)
    raise ValueError(f"{where}: expected one of {', '.join(names)}{nearest(name, names)}")


@functools.cache  # one log line per device type and choice
def _announce(device_type: str, chosen: str, reason: str) -> None:
    logger.info("expert backend on %s: %s (%s)", device_type, chosen, reason)
