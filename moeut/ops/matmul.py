"""Multiply the rows of one expert as fast as the processor allows.

Two routines, one signature ``product(a, b) -> a @ b``. ``torch.mm`` serves every device and
dtype. On a CPU with AVX-512 that is not Intel's, MKL (which serves float32 ``torch.mm``) reaches
half the rate of oneDNN, so float32 goes to oneDNN there. The choice depends on the machine alone
and never on a timing, so that a resumed run repeats the bits of the first.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Product = Callable[[Tensor, Tensor], Tensor]

MAX_BLOCK_ROWS = 1024
"""Rows of one expert are multiplied in blocks of at most this many, so that they stay in cache."""


def onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, (M, K) by (K, N), float32 on the CPU, computed by oneDNN."""
    # The operation that torch.compile emits for a linear layer: it takes the weight as (N, K).
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def choose_product(dtype: torch.dtype, device_type: str) -> Product:
    """Return the routine for a dtype and device."""
    if device_type == "cpu" and dtype == torch.float32 and _onednn_is_faster():
        return onednn_product
    return torch.mm


def compiles_every_shape(dtype: torch.dtype, device_type: str, product: Product) -> bool:
    """Return whether the routine compiles code for every new number of rows.

    oneDNN does (about 2 ms a shape, 1024 shapes kept), so rows are padded to a few sizes there.
    """
    return product is onednn_product or (
        device_type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    )


def padded_rows(num_rows: int) -> int:
    """Round up to one of 36 sizes: powers of two to 16, then steps of 16, 32 and 64 rows."""
    if num_rows <= 16:
        return 1 << max(num_rows - 1, 0).bit_length()
    step = 16 if num_rows <= 256 else 32 if num_rows <= 512 else 64
    return -(-num_rows // step) * step


@functools.cache  # decided and logged once
def _onednn_is_faster() -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "GenuineIntel" in cpuinfo.read_text():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    logger.info("float32 expert matmuls use oneDNN: MKL does not use this processor's AVX-512")
    return True
