"""Define the expert operations by loops that are obviously right, differentiated by autograd.

Slow, for any dtype and device. The other backends are tested against this one, and this one
against dense einsums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeut.ops.dispatch import Dispatch


def expert_linear(
    x: Tensor,
    weight: Tensor,
    dispatch: Dispatch,
    slots_per_input: int,
    slots_per_output: int,
    gate: Tensor | None,
) -> Tensor:
    """Sum gated per-expert linear maps of the slots; see ``moeut.ops.expert_linear``.

    Takes ``x`` (S / slots_per_input, D_in), ``weight`` (E, D_in, D_out) and ``gate`` (S,); returns
    (S / slots_per_output, D_out).
    """
    out = x.new_zeros(dispatch.num_slots // slots_per_output, weight.shape[2])
    for expert in range(dispatch.num_experts):
        slots = (dispatch.expert_index == expert).nonzero().squeeze(1)
        rows = x[slots // slots_per_input] @ weight[expert]
        if gate is not None:
            rows = rows * gate[slots].unsqueeze(1)
        out = out.index_add(0, slots // slots_per_output, rows)
    return out


def expert_mlp(
    x: Tensor, w_up: Tensor, w_down: Tensor, dispatch: Dispatch, gate: Tensor | None
) -> Tensor:
    """Compose two expert linears with a ReLU between; see ``moeut.ops.expert_mlp``.

    Takes ``x`` (T, D), ``w_up`` (E, D, F), ``w_down`` (E, F, D) and ``gate`` (S,); returns (T, D).
    """
    top_k = dispatch.num_slots // x.shape[0] if x.shape[0] else 1
    hidden = expert_linear(x, w_up, dispatch, top_k, 1, None)
    return expert_linear(torch.relu(hidden), w_down, dispatch, 1, top_k, gate)
