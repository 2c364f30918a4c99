"""Compute what the expert operations are by the kernels: outputs, and all gradients at once.

Shapes: T tokens, S slots, E experts, D model width, F expert width.

* Rows are gathered by the product that reads them; bias, ReLU and gate are its epilogue.
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

from moeut.ops.triton.launch import Routing, RowProduct, Rows, WeightSum, weight_gradient


def linear_forward(
    x: Tensor,
    weight: Tensor,
    routing: Routing,
    gate: Tensor | None,
    bias: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    """Return the output rows."""
    x, weight, gate, bias = _contiguous(x, weight, gate, bias)
    return (
        RowProduct(
            routing=routing,
            inputs=Rows(x, slots_per_input),
            weight=weight,
            slots_per_output=slots_per_output,
            gate=gate,
            bias=bias,
        )
        .compute()
        .output
    )


def linear_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    routing: Routing,
    gate: Tensor | None,
    bias: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
    needs: list[bool],
    weight_sum: WeightSum | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, gate and bias; those not in ``needs`` are empty."""
    need_x, need_weight, need_gate, need_bias = needs
    grad, x, weight, gate, bias = _contiguous(grad, x, weight, gate, bias)
    d_x = d_weight = d_gate = d_bias = x.new_empty(0)
    if need_x or need_gate:
        d_x, _, d_gate = RowProduct(
            routing=routing,
            inputs=Rows(grad, slots_per_output),
            weight=weight,
            transposed=True,
            slots_per_output=slots_per_input,
            epilogue="gate_gradient" if need_gate else "linear",
            gate=gate,
            bias=bias if need_gate else None,
            partner=Rows(x, slots_per_input),
            needs_output=need_x,
        ).compute()
    if need_weight or need_bias:
        d_weight, d_bias = weight_gradient(
            routing, Rows(x, slots_per_input), Rows(grad, slots_per_output), gate=gate,
            has_bias=need_bias, weight_sum=weight_sum,
        )  # fmt: skip
    return _only_needed((d_x, d_weight, d_gate, d_bias), needs)


def mlp_forward(
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    routing: Routing,
    gate: Tensor | None,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, D) and, if to be kept, the hidden activations (S, F), sorted."""
    x, w_up, w_down, gate, bias_up, bias_down = _contiguous(
        x, w_up, w_down, gate, bias_up, bias_down
    )
    top_k = routing.num_slots // max(x.shape[0], 1)
    hidden = _hidden(x, w_up, bias_up, routing, top_k)
    product = RowProduct(
        routing=routing,
        inputs=Rows(hidden),
        weight=w_down,
        slots_per_output=top_k,
        gate=gate,
        bias=bias_down,
    ).compute()
    out = product.output if routing.num_slots else torch.zeros_like(x)
    return out, hidden if keep_hidden else x.new_empty(0, w_up.shape[2])


def _hidden(
    x: Tensor, w_up: Tensor, bias_up: Tensor | None, routing: Routing, top_k: int
) -> Tensor:
    return (
        RowProduct(
            routing=routing, inputs=Rows(x, top_k), weight=w_up, epilogue="relu", bias=bias_up
        )
        .compute()
        .output
    )


def mlp_gradients(
    grad: Tensor,
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    routing: Routing,
    gate: Tensor | None,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    hidden: Tensor,
    needs: list[bool],
    up_sum: WeightSum | None = None,
    down_sum: WeightSum | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w_up, w_down, gate, bias_up, bias_down; others are empty."""
    need_x, need_up, need_down, _need_gate, need_bias_up, need_bias_down = needs
    grad, x, w_up, w_down, gate, bias_up, bias_down = _contiguous(
        grad, x, w_up, w_down, gate, bias_up, bias_down
    )
    top_k = routing.num_slots // max(x.shape[0], 1)
    if hidden.shape[0] != routing.num_slots:
        hidden = _hidden(x, w_up, bias_up, routing, top_k)
    d_hidden, gated, d_gate = RowProduct(
        routing=routing,
        inputs=Rows(grad, top_k),
        weight=w_down,
        transposed=True,
        epilogue="relu_gradient",
        gate=gate,
        bias=bias_down if gate is not None else None,
        partner=Rows(hidden),
    ).compute()
    if gate is None:
        gated = hidden
    d_x = d_up = d_down = d_bias_up = d_bias_down = x.new_empty(0)
    if need_down or need_bias_down:
        d_down, d_bias_down = weight_gradient(
            routing, Rows(gated), Rows(grad, top_k), gate=gate, gates_product=False,
            has_bias=need_bias_down, weight_sum=down_sum,
        )  # fmt: skip
    del gated
    if need_up or need_bias_up:
        d_up, d_bias_up = weight_gradient(
            routing, Rows(x, top_k), Rows(d_hidden), has_bias=need_bias_up, weight_sum=up_sum
        )
    if need_x:
        product = RowProduct(
            routing=routing,
            inputs=Rows(d_hidden),
            weight=w_up,
            transposed=True,
            slots_per_output=top_k,
        ).compute()
        d_x = product.output if routing.num_slots else torch.zeros_like(x)
    return _only_needed((d_x, d_up, d_down, d_gate, d_bias_up, d_bias_down), needs)


def _contiguous(*tensors: Tensor | None) -> Any:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _only_needed(gradients: tuple[Tensor, ...], needs: list[bool]) -> Any:
    """Replace the gradients that are not needed by empty tensors, as the fakes promise."""
    pairs = zip(gradients, needs, strict=True)
    return tuple(gradient if need else gradient.new_empty(0) for gradient, need in pairs)
