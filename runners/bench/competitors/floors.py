"""Products that PyTorch and oneDNN offer: a dense layer by oneDNN, and PyTorch's grouped product.

Shapes: T tokens, S slots, E experts, D model width, F expert width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moeut.ops import Dispatch
from moeut.ops.products import ONEDNN, onednn_is_faster


def experts_use_onednn(x: Tensor) -> bool:
    """Return whether our experts multiply tensors like this one by oneDNN."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and onednn_is_faster()


class OnednnLinear(torch.autograd.Function):
    """Apply a linear layer, x (T, D) by weight (F, D), by the routine that serves the experts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return ONEDNN.product(x, weight.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return ONEDNN.product(grad, weight), ONEDNN.product(grad.t(), x)


def takes_grouped_mm(device: torch.device, dtype: torch.dtype, *widths: int) -> bool:
    """Return whether PyTorch's grouped product is more than a loop: bfloat16, rows of 16 bytes."""
    if dtype != torch.bfloat16:
        return False
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return hasattr(torch, "_grouped_mm") and all(width % 8 == 0 for width in widths)


def grouped_mm_mlp(
    x: Tensor, w_up: Tensor, w_down: Tensor, dispatch: Dispatch, gate: Tensor
) -> Tensor:
    """Compute a σ-MoE layer in bfloat16 by PyTorch's grouped product; see ``expert_mlp``.

    Takes ``x`` (T, D), ``w_up`` (E, D, F), ``w_down`` (E, F, D), ``gate`` (T, top_k); returns
    (T, D).
    """
    top_k = dispatch.num_slots // x.shape[0]
    hidden = torch.relu(_grouped_mm(x.index_select(0, dispatch.order // top_k), w_up, dispatch))
    return _sum_slots(_grouped_mm(hidden, w_down, dispatch), dispatch, gate, top_k)


def grouped_mm_linear(
    x: Tensor,
    weight: Tensor,
    dispatch: Dispatch,
    gate: Tensor,
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    """Compute a SwitchHead projection in bfloat16 by PyTorch's grouped product.

    Takes and returns what ``expert_linear`` does.
    """
    rows = x.index_select(0, dispatch.order // slots_per_input)
    return _sum_slots(_grouped_mm(rows, weight, dispatch), dispatch, gate, slots_per_output)


def _grouped_mm(rows: Tensor, weight: Tensor, dispatch: Dispatch) -> Tensor:
    """Multiply sorted rows (S, M) by their experts' matrices (E, M, N)."""
    rows, weight = rows.to(torch.bfloat16), weight.to(torch.bfloat16)
    return torch._grouped_mm(rows, weight, offs=dispatch.offsets[1:].to(torch.int32))


def _sum_slots(rows: Tensor, dispatch: Dispatch, gate: Tensor, slots_per_output: int) -> Tensor:
    """Sum gated rows (S, N) in sorted order over each output's slots."""
    place = torch.empty_like(dispatch.order)  # (S,) the sorted row of each slot
    place[dispatch.order] = torch.arange(dispatch.num_slots, device=rows.device)
    slots = rows.index_select(0, place).view(-1, slots_per_output, rows.shape[1])
    return torch.einsum("okd,ok->od", slots, gate.reshape(-1, slots_per_output).to(slots.dtype))
