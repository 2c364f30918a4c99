"""Choose which implementation computes the expert operations."""

from __future__ import annotations

import difflib
import functools
import logging
import os

import torch

logger = logging.getLogger(__name__)

BACKENDS = {
    "reference": "a loop over experts, differentiated by autograd; slow, any dtype",
    "grouped": "plain PyTorch with a backward of its own; the fast CPU path, works on any device",
    "triton": "GPU kernels; not available in this build",
}

AVAILABLE = ("reference", "grouped")


def available_backends() -> tuple[str, ...]:
    """Return the names that ``resolve_backend`` accepts in this build, besides ``auto``."""
    return AVAILABLE


def resolve_backend(backend: str = "auto", device: torch.device | str = "cpu") -> str:
    """Return the name of the backend to use on a device.

    An argument other than ``auto`` wins over the environment variable ``MOEUT_BACKEND``, which wins
    over the automatic choice. Raises ValueError for a name that is unknown or not in this build.
    """
    if backend != "auto":
        return _check(backend, f"backend={backend!r}")
    from_environment = os.environ.get("MOEUT_BACKEND") or "auto"
    if from_environment != "auto":
        return _check(from_environment, f"MOEUT_BACKEND={from_environment!r}")
    if not torch.compiler.is_compiling():  # logging would break a compiled graph
        _announce(torch.device(device).type)
    return "grouped"


def _check(name: str, where: str) -> str:
    if name in AVAILABLE:
        return name
    allowed = ", ".join(("auto", *AVAILABLE))
    if name in BACKENDS:
        raise ValueError(f"{where}: not available in this build; expected one of {allowed}")
    nearest = difflib.get_close_matches(name, ("auto", *AVAILABLE), n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{where}: expected one of {allowed}{hint}")


@functools.cache  # one log line per device type
def _announce(device_type: str) -> None:
    reason = "the fastest" if device_type == "cpu" else "this build has no kernels for it"
    logger.info("expert backend on %s: grouped (%s)", device_type, reason)
