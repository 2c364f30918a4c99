"""Choose the routine that multiplies matrices: ``torch.mm``, or on some CPUs oneDNN.

``torch.mm`` serves every device and dtype. On a CPU with AVX-512 that is not Intel's, MKL (which
serves float32 ``torch.mm``) reaches half the rate of oneDNN, so float32 blocks of more than a few
rows go to oneDNN there. The choice depends on the machine and the number of rows alone and never on
a timing, so that a resumed run repeats the bits of the first.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_BLOCK_ROWS = 1024
"""Rows of one expert are multiplied in blocks of at most this many, so that they stay in cache."""

MIN_ONEDNN_WORK = 1_500_000
"""Multiplications of a product from which on oneDNN's rate outweighs its cost per call (10 µs)."""


class Routine(Protocol):
    """Compute matrix products of one dtype on one device."""

    pads_rows: bool
    """Whether the number of rows is to be rounded up to one of a few sizes."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b, of (N, K) and (K, M)."""

    def row_sum_into(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """Write leftᵀ @ right, of (N, A) and (N, B), a sum over rows, to ``out`` (A, B)."""


class TorchRoutine:
    """Multiply by ``torch.mm``."""

    def __init__(self, *, pads_rows: bool = False) -> None:
        self.pads_rows = pads_rows

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b, of (N, K) and (K, M)."""
        return torch.mm(a, b)

    def row_sum_into(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """Write leftᵀ @ right, of (N, A) and (N, B), a sum over rows, to ``out`` (A, B)."""
        torch.mm(left.t(), right, out=out)


class OnednnRoutine:
    """Multiply float32 matrices on the CPU by oneDNN, as torch.compile does in a linear layer.

    oneDNN compiles code for every new shape (about 2 ms) and keeps 1024 of them, so rows are padded
    to a few sizes.
    """

    pads_rows = True

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b, of (N, K) and (K, M)."""
        # The operation takes its weight as (N, K), of any strides.
        return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), None, "none", [], "")

    def row_sum_into(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """Write leftᵀ @ right, of (N, A) and (N, B), a sum over rows, to ``out`` (A, B)."""
        out.copy_(self.product(left.t(), right))


PLAIN = TorchRoutine()
PADDED = TorchRoutine(pads_rows=True)
ONEDNN = OnednnRoutine()


def choose_routine(num_rows: int, weight: Tensor) -> Routine:
    """Return the routine that multiplies rows by one of the matrices of a weight (E, M, N).

    It depends on the machine, the dtype and the size, so that it is the same after a resume.
    """
    if weight.device.type != "cpu":
        return PLAIN
    if weight.dtype in (torch.bfloat16, torch.float16):
        return PADDED  # torch.mm is oneDNN there
    work = num_rows * weight.shape[1] * weight.shape[2]
    is_large = weight.dtype == torch.float32 and work >= MIN_ONEDNN_WORK
    return ONEDNN if is_large and onednn_is_faster() else PLAIN


def padded_rows(num_rows: int) -> int:
    """Round up by at most an eighth or 15 rows, to one of 34 sizes up to ``MAX_BLOCK_ROWS``."""
    step = 8 if num_rows <= 64 else 16 if num_rows <= 256 else 32 if num_rows <= 512 else 64
    return -(-num_rows // step) * step


@functools.cache  # decided and logged once
def onednn_is_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices on this processor faster than MKL."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "GenuineIntel" in cpuinfo.read_text(encoding="utf-8"):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    logger.info("float32 expert matmuls use oneDNN: MKL is slower on an AVX-512 CPU not Intel's")
    return True
