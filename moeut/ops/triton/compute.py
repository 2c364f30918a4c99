"""Compute what the expert operations are by the kernels: outputs, and all gradients at once.

Shapes: T tokens, S slots, E experts, D model width, F expert width.

* Rows are gathered by the product that reads them; ReLU and gate are its epilogue.
* A sum over slots is taken by a second kernel, in the order of slots, and never by atomics, over
  slabs of columns: outputs of all slots (S, D) never exist at once where that would be large.
* The MLP's backward takes one product, grad @ w_downᵀ, to dz, the gated hidden activations and the
  gates' gradients at once.

Two runs give the same bits, and nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moeut.ops.differentiation import only_needed
from moeut.ops.triton.launch import Routing, RowProduct, Rows, WeightSum, weight_gradient


def linear_forward(
    x: Tensor,
    weight: Tensor,
    routing: Routing,
    gate: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    """Return the output rows (S / slots_per_output, D_out) of ``moeut.ops.expert_linear``."""
    x, weight, gate = _contiguous(x, weight, gate)
    product = RowProduct(
        routing=routing,
        inputs=Rows(x, slots_per_input),
        weight=weight,
        slots_per_output=slots_per_output,
        gate=gate,
    )
    return product.compute().output


def linear_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    routing: Routing,
    gate: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
    needs: list[bool],
    weight_sum: WeightSum | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and gate; those not in ``needs`` are empty.

    ``grad`` is of the output, (S / slots_per_output, D_out). The gate's gradient (S,) is the inner
    product of an input row with grad @ weightᵀ, which the input's gradient needs anyway.
    """
    need_x, need_weight, need_gate = needs
    grad, x, weight, gate = _contiguous(grad, x, weight, gate)
    d_x = d_weight = d_gate = None
    if need_x or need_gate:
        d_x, _, d_gate = RowProduct(
            routing=routing,
            inputs=Rows(grad, slots_per_output),
            weight=weight,
            transposed=True,
            slots_per_output=slots_per_input,
            epilogue="gate_gradient" if need_gate else "linear",
            gate=gate,
            partner=Rows(x, slots_per_input),
            needs_output=need_x,
        ).compute()
    if need_weight:
        d_weight = weight_gradient(
            *(routing, Rows(x, slots_per_input), Rows(grad, slots_per_output)),
            gate=gate,
            weight_sum=weight_sum,
        )
    return only_needed((d_x, d_weight, d_gate), needs, x)


def mlp_forward(
    x: Tensor, w_up: Tensor, w_down: Tensor, routing: Routing, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the output (T, D) and the hidden activations (S, F) in sorted order."""
    x, w_up, w_down, gate = _contiguous(x, w_up, w_down, gate)
    top_k = routing.num_slots // max(x.shape[0], 1)
    up = RowProduct(routing=routing, inputs=Rows(x, top_k), weight=w_up, epilogue="relu")
    hidden = up.compute().output
    down = RowProduct(
        routing=routing,
        inputs=Rows(hidden),
        weight=w_down,
        slots_per_output=top_k,
        gate=gate,
    )
    return down.compute().output if routing.num_slots else torch.zeros_like(x), hidden


def mlp_gradients(
    grad: Tensor,
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    routing: Routing,
    gate: Tensor | None,
    hidden: Tensor,
    needs: list[bool],
    up_sum: WeightSum | None = None,
    down_sum: WeightSum | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w_up, w_down and gate; those not in ``needs`` are empty.

    ``grad`` (T, D) is of the output; ``hidden`` (S, F) what ``mlp_forward`` returned.
    """
    need_x, need_up, need_down, _need_gate = needs
    grad, x, w_up, w_down, gate = _contiguous(grad, x, w_up, w_down, gate)
    top_k = routing.num_slots // max(x.shape[0], 1)
    d_hidden, gated, d_gate = RowProduct(
        routing=routing,
        inputs=Rows(grad, top_k),
        weight=w_down,
        transposed=True,
        epilogue="relu_gradient",
        gate=gate,
        partner=Rows(hidden),
    ).compute()
    d_x = d_up = d_down = None
    if need_down:
        # The gate is in the left factor already.
        left = Rows(hidden if gate is None else gated)
        d_down = weight_gradient(routing, left, Rows(grad, top_k), weight_sum=down_sum)
        del left
    del gated  # (S, F), which the products below need not wait beside
    if need_up:
        d_up = weight_gradient(routing, Rows(x, top_k), Rows(d_hidden), weight_sum=up_sum)
    if need_x:
        product = RowProduct(
            routing=routing,
            inputs=Rows(d_hidden),
            weight=w_up,
            transposed=True,
            slots_per_output=top_k,
        )
        d_x = product.compute().output if routing.num_slots else torch.zeros_like(x)
    return only_needed((d_x, d_up, d_down, d_gate), needs, x)


def _contiguous(*tensors: Tensor | None) -> Any:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
