"""Choose which implementation computes the expert operations."""

from __future__ import annotations

import difflib
import functools
import logging
import os

import torch

from moeut.ops.triton.device import why_not

logger = logging.getLogger(__name__)

BACKENDS = {
    "reference": "a loop over experts, differentiated by autograd; slow, any dtype",
    "grouped": "plain PyTorch with a backward of its own; the fast CPU path, works on any device",
    "triton": "GPU kernels; float32, float16 and bfloat16, NVIDIA from compute capability 8.0 on",
}


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


def compute_dtype(like: torch.Tensor) -> torch.dtype:
    """Return the dtype to compute in on tensors like this one: autocast's, but of float64 never."""
    device = like.device.type
    is_autocast = torch.is_autocast_enabled(device) and like.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_autocast else like.dtype


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
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{where}: expected one of {', '.join(names)}{hint}")


@functools.cache  # one log line per device type and choice
def _announce(device_type: str, chosen: str, reason: str) -> None:
    logger.info("expert backend on %s: %s (%s)", device_type, chosen, reason)
