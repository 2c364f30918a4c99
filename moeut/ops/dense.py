"""Dense layers: every product of states by a weight goes through ``linear``.

On a CPU with AVX-512 that is not Intel's, where MKL reaches half of the machine's rate in float32,
``linear`` calls the C++ operations of ``moeut.ops.native``; elsewhere, for other dtypes, and in
compiled graphs (where Inductor chooses) it is ``torch.nn.functional.linear``. Where there is no
compiler, large products go to oneDNN. The choice depends on the machine, the dtype and the size
alone, so that a resumed run repeats the bits of the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.ops import native
from moeut.ops.cpu_routine import MIN_ONEDNN_WORK, ONEDNN, onednn_is_faster

MIN_NATIVE_ROWS = 8
"""Rows from which on packing a weight pays."""


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
        if num_rows >= MIN_NATIVE_ROWS and native.why_not() is None:
            return torch.ops.moeut_native.linear(x, weight, bias, relu)
        if num_rows * weight.numel() >= MIN_ONEDNN_WORK and onednn_is_faster():
            y = _Onednn.apply(x, weight, bias)
            return F.relu(y) if relu else y
    y = F.linear(x, weight, bias)
    return F.relu(y) if relu else y


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
