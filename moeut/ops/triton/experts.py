"""The expert operations on a GPU, as PyTorch sees them: registered, and differentiable once.

Shapes: T tokens, S slots, E experts, D model width, F expert width. Registered through
``torch.library``, so that ``torch.compile`` sees no graph break, and a CUDA graph can capture it
all. Kept for backward are the inputs, the routing and the hidden activations (S, F), or without the
latter if they are to be computed again. What is computed is in ``triton_compute``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moeut.ops.dispatch import Dispatch
from moeut.ops.shared import SharedWeight, new_thread
from moeut.ops.triton.compute import (
    linear_forward,
    linear_gradients,
    mlp_forward,
    mlp_gradients,
)
from moeut.ops.triton.device import compute_capability
from moeut.ops.triton.dispatch import choose_tile_rows, make_tiles
from moeut.ops.triton.launch import Routing, WeightSum


def expert_linear(
    x: Tensor,
    weight: Tensor | SharedWeight,
    dispatch: Dispatch,
    slots_per_input: int,
    slots_per_output: int,
    gate: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Sum gated per-expert linear maps of the slots; see ``moeut.ops.expert_linear``."""
    routing = Routing(dispatch.order, dispatch.offsets, *tiles_of(dispatch))
    slots = (slots_per_input, slots_per_output)
    if not isinstance(weight, SharedWeight):
        return _linear(x, weight, *routing, gate, bias, *slots)
    out, weight.thread = _SharedLinear.apply(
        x, gate, bias, weight.thread, weight.value, routing, slots
    )
    return out


def expert_mlp(
    x: Tensor,
    w_up: Tensor | SharedWeight,
    w_down: Tensor | SharedWeight,
    dispatch: Dispatch,
    gate: Tensor | None,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    *,
    recompute: bool = False,
) -> Tensor:
    """Apply the whole expert MLP; see ``moeut.ops.expert_mlp``."""
    routing = Routing(dispatch.order, dispatch.offsets, *tiles_of(dispatch))
    if isinstance(w_up, SharedWeight) and isinstance(w_down, SharedWeight):
        inputs = (x, gate, bias_up, bias_down, w_up.thread, w_down.thread)
        keep_hidden = not recompute and _needs_gradient(inputs)
        out, w_up.thread, w_down.thread = _SharedMlp.apply(
            *inputs, w_up.value, w_down.value, routing, keep_hidden
        )
        return out
    assert isinstance(w_up, Tensor)
    assert isinstance(w_down, Tensor)
    keep_hidden = not recompute and _needs_gradient((x, w_up, w_down, gate, bias_up, bias_down))
    out, _hidden = _mlp(x, w_up, w_down, *routing, gate, bias_up, bias_down, keep_hidden)
    return out


def _needs_gradient(inputs: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in inputs)


def tiles_of(dispatch: Dispatch) -> tuple[Tensor, int]:
    """Return the tiles of a dispatch and their rows, made here where it came without."""
    if dispatch.tiles is not None:
        return dispatch.tiles, dispatch.tile_rows
    capability = compute_capability(dispatch.order.device)
    tile_rows = choose_tile_rows(dispatch.num_slots, dispatch.num_experts, capability)
    return make_tiles(dispatch.offsets, dispatch.num_slots, tile_rows), tile_rows


@torch.library.custom_op("moeut::triton_linear", mutates_args=())
def _linear(
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile_rows: int,
    gate: Tensor | None,
    bias: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    routing = Routing(order, offsets, tiles, tile_rows)
    return linear_forward(x, weight, routing, gate, bias, slots_per_input, slots_per_output)


@_linear.register_fake
def _(
    x,
    weight,
    order,
    offsets,
    tiles,
    tile_rows,
    gate,
    bias,
    slots_per_input,
    slots_per_output,
):
    return x.new_empty(order.shape[0] // slots_per_output, weight.shape[2])


@torch.library.custom_op("moeut::triton_linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile_rows: int,
    gate: Tensor | None,
    bias: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, gate and bias; those not in ``needs`` are empty."""
    routing = Routing(order, offsets, tiles, tile_rows)
    return linear_gradients(
        grad, x, weight, routing, gate, bias, slots_per_input, slots_per_output, needs
    )


@_linear_backward.register_fake
def _(
    grad,
    x,
    weight,
    order,
    offsets,
    tiles,
    tile_rows,
    gate,
    bias,
    slots_per_input,
    slots_per_output,
    needs,
):
    return _fake_gradients((x, weight, gate, bias), needs)


def _linear_setup_context(ctx, inputs, output):
    *tensors, tile_rows, gate, bias, slots_per_input, slots_per_output = inputs
    ctx.save_for_backward(*tensors, gate, bias)
    ctx.options = (tile_rows, slots_per_input, slots_per_output)


def _linear_autograd(ctx, grad):
    *tensors, gate, bias = ctx.saved_tensors
    tile_rows, *slots = ctx.options
    needs = [ctx.needs_input_grad[position] for position in (0, 1, 6, 7)]
    gradients = _linear_backward(grad, *tensors, tile_rows, gate, bias, *slots, needs)
    d_x, d_weight, d_gate, d_bias = _drop_unneeded(gradients, needs)
    return d_x, d_weight, None, None, None, None, d_gate, d_bias, None, None


_linear.register_autograd(_linear_autograd, setup_context=_linear_setup_context)


@torch.library.custom_op("moeut::triton_mlp", mutates_args=())
def _mlp(
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile_rows: int,
    gate: Tensor | None,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, D) and the hidden activations (S, F) in sorted order."""
    routing = Routing(order, offsets, tiles, tile_rows)
    return mlp_forward(x, w_up, w_down, routing, gate, bias_up, bias_down, keep_hidden)


@_mlp.register_fake
def _(
    x,
    w_up,
    w_down,
    order,
    offsets,
    tiles,
    tile_rows,
    gate,
    bias_up,
    bias_down,
    keep_hidden,
):
    num_rows = order.shape[0] if keep_hidden else 0
    return x.new_empty(x.shape), x.new_empty(num_rows, w_up.shape[2])


@torch.library.custom_op("moeut::triton_mlp_backward", mutates_args=())
def _mlp_backward(
    grad: Tensor,
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile_rows: int,
    gate: Tensor | None,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    hidden: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w_up, w_down, gate, bias_up, bias_down; others are empty."""
    routing = Routing(order, offsets, tiles, tile_rows)
    return mlp_gradients(grad, x, w_up, w_down, routing, gate, bias_up, bias_down, hidden, needs)


@_mlp_backward.register_fake
def _(
    grad,
    x,
    w_up,
    w_down,
    order,
    offsets,
    tiles,
    tile_rows,
    gate,
    bias_up,
    bias_down,
    hidden,
    needs,
):
    return _fake_gradients((x, w_up, w_down, gate, bias_up, bias_down), needs)


def _mlp_setup_context(ctx, inputs, output):
    *tensors, tile_rows, gate, bias_up, bias_down, _keep_hidden = inputs
    _out, hidden = output
    ctx.save_for_backward(*tensors, gate, bias_up, bias_down, hidden)
    ctx.tile_rows = tile_rows


def _mlp_autograd(ctx, grad, _grad_hidden):
    *tensors, gate, bias_up, bias_down, hidden = ctx.saved_tensors
    needs = [ctx.needs_input_grad[position] for position in (0, 1, 2, 7, 8, 9)]
    gradients = _mlp_backward(
        grad, *tensors, ctx.tile_rows, gate, bias_up, bias_down, hidden, needs
    )
    d_x, d_up, d_down, d_gate, d_bias_up, d_bias_down = _drop_unneeded(gradients, needs)
    return d_x, d_up, d_down, *(None,) * 4, d_gate, d_bias_up, d_bias_down, None


_mlp.register_autograd(_mlp_autograd, setup_context=_mlp_setup_context)


# --- shared weights ---------------------------------------------------------------------


class _SharedLinear(torch.autograd.Function):
    """``_linear`` on a shared weight: takes its thread, and hands on a new one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor | None,
        bias: Tensor | None,
        thread: Tensor | None,
        weight: Tensor,
        routing: Routing,
        slots: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)  # the first sum so far is nothing, not zeros
        ctx.save_for_backward(x, gate, bias, weight, *routing[:3])
        ctx.options = (routing.tile_rows, slots)
        out = linear_forward(x, weight, routing, gate, bias, *slots)
        return out, None if thread is None else new_thread(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, so_far: Tensor | None) -> Any:  # type: ignore[override]
        if grad is None:  # the output was not used
            return None, None, None, so_far, None, None, None
        x, gate, bias, weight, order, offsets, tiles = ctx.saved_tensors
        tile_rows, (slots_per_input, slots_per_output) = ctx.options
        routing = Routing(order, offsets, tiles, tile_rows)
        need_x, need_gate, need_bias, need_weight = ctx.needs_input_grad[:4]
        needs = [need_x, need_weight, need_gate, need_bias]
        gradients = linear_gradients(
            grad, x, weight, routing, gate, bias, slots_per_input, slots_per_output, needs,
            WeightSum(so_far),
        )  # fmt: skip
        d_x, d_weight, d_gate, d_bias = _drop_unneeded(gradients, needs)
        return d_x, d_gate, d_bias, d_weight, None, None, None


class _SharedMlp(torch.autograd.Function):
    """``_mlp`` on shared weights: takes their threads, and hands on new ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor | None,
        bias_up: Tensor | None,
        bias_down: Tensor | None,
        up_thread: Tensor | None,
        down_thread: Tensor | None,
        w_up: Tensor,
        w_down: Tensor,
        routing: Routing,
        keep_hidden: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        biases = (bias_up, bias_down)
        out, hidden = mlp_forward(x, w_up, w_down, routing, gate, *biases, keep_hidden)
        ctx.save_for_backward(x, gate, *biases, w_up, w_down, hidden, *routing[:3])
        ctx.tile_rows = routing.tile_rows
        threads = (
            None if thread is None else new_thread(weight)
            for thread, weight in ((up_thread, w_up), (down_thread, w_down))
        )
        return out, *threads  # type: ignore[return-value]

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor | None, up_so_far: Tensor | None, down_so_far: Tensor | None
    ) -> Any:
        if grad is None:  # the output was not used
            return *(None,) * 4, up_so_far, down_so_far, *(None,) * 4
        x, gate, bias_up, bias_down, w_up, w_down, hidden, order, offsets, tiles = (
            ctx.saved_tensors  # which activation checkpointing lets one read but once
        )
        routing = Routing(order, offsets, tiles, ctx.tile_rows)
        need_x, need_gate, need_bias_up, need_bias_down, need_up, need_down = ctx.needs_input_grad[
            :6
        ]
        needs = [need_x, need_up, need_down, need_gate, need_bias_up, need_bias_down]
        gradients = mlp_gradients(
            grad, x, w_up, w_down, routing, gate, bias_up, bias_down,
            hidden, needs, WeightSum(up_so_far), WeightSum(down_so_far),
        )  # fmt: skip
        d_x, d_up, d_down, d_gate, d_bias_up, d_bias_down = _drop_unneeded(gradients, needs)
        return d_x, d_gate, d_bias_up, d_bias_down, d_up, d_down, *(None,) * 4


def _fake_gradients(inputs: tuple[Tensor, ...], needs: list[bool]) -> tuple[Tensor, ...]:
    x = inputs[0]
    return tuple(
        x.new_empty(tensor.shape) if need else x.new_empty(0)
        for tensor, need in zip(inputs, needs, strict=True)
    )


def _drop_unneeded(gradients: tuple[Tensor, ...], needs: list[bool]) -> Iterator[Tensor | None]:
    return (g if need else None for g, need in zip(gradients, needs, strict=True))
