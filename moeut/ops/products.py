"""Who multiplies: dense layers, and the rows of one expert.

Every dense product of a model goes through ``linear``. On a CPU with AVX-512 that is not Intel's,
where MKL (which serves float32 ``torch.mm``) reaches half of the machine's rate, it calls the C++
operations of ``moeut.ops.native``; elsewhere, for other dtypes, and in compiled graphs (where
Inductor chooses) it is ``torch.nn.functional.linear``. Where there is no C++ compiler, products of
more than a few rows go to oneDNN, by a ``Routine``.

The choice depends on the machine, the dtype and the size alone, never on a timing, so that a
resumed run repeats the bits of the first.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.ops import native

logger = logging.getLogger(__name__)

MAX_BLOCK_ROWS = 1024
"""Rows of one expert are multiplied in blocks of at most this many, so that they stay in cache."""

MIN_ONEDNN_WORK = 1_500_000
"""Multiplications of a product from which on oneDNN's rate outweighs its cost per call (10 µs)."""


MIN_NATIVE_ROWS = 4
"""Rows of a dense layer from which on C++ multiplies, outside ``fewest_rows``. It is faster for
fewer, too, but rounds otherwise than MKL, and results that are on record were computed so."""


MIN_BLOCKED_ROWS = 24
"""Rows of two dense layers from which on one operation in C++ is both: fewer are summed otherwise
(``kFewRows`` of product.h)."""


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


# --- dense layers -----------------------------------------------------------------------

_takes_any_rows: ContextVar[bool] = ContextVar("takes_any_rows", default=False)


@contextlib.contextmanager
def fewest_rows() -> Iterator[None]:
    """Let C++ multiply dense layers of fewer than ``MIN_NATIVE_ROWS`` rows, too, in a context.

    That is twice as fast and more, and differs by rounding: for text that is written for one or a
    few prompts, whose numbers nothing compares.
    """
    before = _takes_any_rows.set(True)
    try:
        yield
    finally:
        _takes_any_rows.reset(before)


def takes_any_rows() -> bool:
    """Return whether this is within ``fewest_rows``, where the last bits do not matter."""
    return _takes_any_rows.get()


class Linear(nn.Linear):
    """A dense layer of these models: the parameters of ``nn.Linear``, multiplied by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b, (..., I) to (..., O)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Return x Wᵀ + b of ``x`` (..., I), ``weight`` (O, I) and ``bias`` (O): (..., O).

    With ``relu`` the result's negative elements are 0, which costs no pass of its own. Differs from
    ``torch.nn.functional.linear`` by rounding at most; under autocast it is that.
    """
    if native.is_float32(x, weight, bias):
        num_rows = x.numel() // max(x.shape[-1], 1)
        is_taken = num_rows >= MIN_NATIVE_ROWS or (num_rows > 0 and _takes_any_rows.get())
        if is_taken and weight.numel() and native.why_not() is None:
            return torch.ops.moeut_native.linear(x, weight, bias, relu)
        if num_rows * weight.numel() >= MIN_ONEDNN_WORK and onednn_is_faster():
            y = _Onednn.apply(x, weight, bias)
            return F.relu(y) if relu else y
    y = F.linear(x, weight, bias)
    return F.relu(y) if relu else y


def relu_mlp(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None
) -> Tensor:
    """Return relu(x Uᵀ + a) Wᵀ + b of ``x`` (..., D), ``up`` (F, D), ``down`` (O, F): (..., O).

    The same as ``linear`` twice, to the bit; in C++ a block of rows stays in cache between the two.
    """
    if native.is_float32(x, up, up_bias, down, down_bias):
        num_rows = x.numel() // max(x.shape[-1], 1)
        has_weights = up.numel() and down.numel()
        if num_rows >= MIN_BLOCKED_ROWS and has_weights and native.why_not() is None:
            return torch.ops.moeut_native.mlp(x, up, up_bias, down, down_bias)
    return linear(linear(x, up, up_bias, relu=True), down, down_bias)


class _Onednn(torch.autograd.Function):
    """A dense layer by oneDNN, called from Python: for where there is no C++ compiler."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = x.reshape(-1, x.shape[-1])
        y = torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], "")
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows, grad = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        return (
            ONEDNN.product(grad, weight).view(x.shape) if need_x else None,
            ONEDNN.product(grad.t(), rows) if need_weight else None,
            grad.sum(0) if need_bias else None,
        )
