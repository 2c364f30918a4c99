"""The expert operations on a GPU, as PyTorch sees them: registered, and differentiable once.

Shapes: T tokens, S slots, E experts, D model width, F expert width. Registered through
``torch.library``, so that ``torch.compile`` sees no graph break, and a CUDA graph can capture it
all. Kept for backward are the inputs, the routing and the hidden activations (S, F). What is
computed is in ``moeut.ops.triton.compute``. An operator's arguments have to be flat, so each begins
by making one ``Routing`` of the four that say what goes where.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moeut.ops.differentiation import drop_unneeded, needs_gradient, register_gradient
from moeut.ops.dispatch import Dispatch
from moeut.ops.shared import SharedWeight, new_carrier
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
) -> Tensor:
    """Sum gated per-expert linear maps of the slots; see ``moeut.ops.expert_linear``.

    Takes ``x`` (S / slots_per_input, D_in), ``weight`` (E, D_in, D_out) and ``gate`` (S,); returns
    (S / slots_per_output, D_out).
    """
    routing = Routing(dispatch.order, dispatch.offsets, *tiles_of(dispatch))
    slots = (slots_per_input, slots_per_output)
    if not isinstance(weight, SharedWeight):
        return _linear(x, weight, *routing, gate, *slots)
    out, weight.carrier = _SharedLinear.apply(x, gate, weight.carrier, weight.value, routing, slots)
    return out


def expert_mlp(
    x: Tensor,
    w_up: Tensor | SharedWeight,
    w_down: Tensor | SharedWeight,
    dispatch: Dispatch,
    gate: Tensor | None,
) -> Tensor:
    """Apply the whole expert MLP; see ``moeut.ops.expert_mlp``.

    Takes ``x`` (T, D), ``w_up`` (E, D, F), ``w_down`` (E, F, D) and ``gate`` (S,); returns (T, D).
    """
    routing = Routing(dispatch.order, dispatch.offsets, *tiles_of(dispatch))
    if isinstance(w_up, SharedWeight) and isinstance(w_down, SharedWeight):
        inputs = (x, gate, w_up.carrier, w_down.carrier)
        out, w_up.carrier, w_down.carrier = _SharedMlp.apply(
            *inputs, w_up.value, w_down.value, routing, needs_gradient(*inputs)
        )
        return out
    assert isinstance(w_up, Tensor)
    assert isinstance(w_down, Tensor)
    keep_hidden = needs_gradient(x, w_up, w_down, gate)
    out, _hidden = _mlp(x, w_up, w_down, *routing, gate, keep_hidden)
    return out


def tiles_of(dispatch: Dispatch) -> tuple[Tensor, int]:
    """Return the tiles (2, max_tiles) of a dispatch and their rows; made here if it has none."""
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
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    routing = Routing(order, offsets, tiles, tile_rows)
    return linear_forward(x, weight, routing, gate, slots_per_input, slots_per_output)


@_linear.register_fake
def _(x, weight, order, offsets, tiles, tile_rows, gate, slots_per_input, slots_per_output):
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
    slots_per_input: int,
    slots_per_output: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and gate; those not in ``needs`` are empty."""
    routing = Routing(order, offsets, tiles, tile_rows)
    return linear_gradients(
        grad, x, weight, routing, gate, slots_per_input, slots_per_output, needs
    )


register_gradient(_linear, _linear_backward, wanted=(0, 1, 6), num_inputs=9)


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
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, D) and the hidden activations (S, F) in sorted order."""
    out, hidden = mlp_forward(x, w_up, w_down, Routing(order, offsets, tiles, tile_rows), gate)
    return out, hidden if keep_hidden else x.new_empty(0, w_up.shape[2])


@_mlp.register_fake
def _(x, w_up, w_down, order, offsets, tiles, tile_rows, gate, keep_hidden):
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
    hidden: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w_up, w_down and gate; those not in ``needs`` are empty."""
    routing = Routing(order, offsets, tiles, tile_rows)
    return mlp_gradients(grad, x, w_up, w_down, routing, gate, hidden, needs)


register_gradient(_mlp, _mlp_backward, wanted=(0, 1, 2, 7), num_inputs=8)


# --- shared weights ---------------------------------------------------------------------


class _SharedLinear(torch.autograd.Function):
    """``_linear`` on a shared weight: takes its carrier, and hands on a new one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor | None,
        carrier: Tensor | None,
        weight: Tensor,
        routing: Routing,
        slots: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)  # the first sum so far is nothing, not zeros
        ctx.save_for_backward(x, gate, weight, *routing[:3])
        ctx.options = (routing.tile_rows, slots)
        out = linear_forward(x, weight, routing, gate, *slots)
        return out, None if carrier is None else new_carrier(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, so_far: Tensor | None) -> Any:  # type: ignore[override]
        if grad is None:  # the output was not used
            return None, None, so_far, None, None, None
        x, gate, weight, order, offsets, tiles = ctx.saved_tensors
        tile_rows, (slots_per_input, slots_per_output) = ctx.options
        routing = Routing(order, offsets, tiles, tile_rows)
        need_x, need_gate, need_weight = ctx.needs_input_grad[:3]
        needs = [need_x, need_weight, need_gate]
        gradients = linear_gradients(
            *(grad, x, weight, routing, gate, slots_per_input, slots_per_output, needs),
            WeightSum(so_far),
        )
        d_x, d_weight, d_gate = drop_unneeded(gradients, needs)
        return d_x, d_gate, d_weight, None, None, None


class _SharedMlp(torch.autograd.Function):
    """``_mlp`` on shared weights: takes their carriers, and hands on new ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor | None,
        up_carrier: Tensor | None,
        down_carrier: Tensor | None,
        w_up: Tensor,
        w_down: Tensor,
        routing: Routing,
        keep_hidden: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        out, hidden = mlp_forward(x, w_up, w_down, routing, gate)
        ctx.save_for_backward(
            *(x, gate, w_up, w_down, hidden if keep_hidden else None, *routing[:3])
        )
        ctx.tile_rows = routing.tile_rows
        carriers = (
            None if carrier is None else new_carrier(weight)
            for carrier, weight in ((up_carrier, w_up), (down_carrier, w_down))
        )
        return out, *carriers  # type: ignore[return-value]

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor | None, up_so_far: Tensor | None, down_so_far: Tensor | None
    ) -> Any:
        if grad is None:  # the output was not used
            return None, None, up_so_far, down_so_far, *(None,) * 4
        # Read them once: under activation checkpointing a second reading raises an error.
        x, gate, w_up, w_down, hidden, order, offsets, tiles = ctx.saved_tensors
        routing = Routing(order, offsets, tiles, ctx.tile_rows)
        need_x, need_gate, need_up, need_down = ctx.needs_input_grad[:4]
        needs = [need_x, need_up, need_down, need_gate]
        gradients = mlp_gradients(
            *(grad, x, w_up, w_down, routing, gate, hidden, needs),
            *(WeightSum(up_so_far), WeightSum(down_so_far)),
        )
        d_x, d_up, d_down, d_gate = drop_unneeded(gradients, needs)
        return d_x, d_gate, d_up, d_down, *(None,) * 4
