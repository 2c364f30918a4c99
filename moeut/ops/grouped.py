"""Compute the expert operations expert by expert in plain PyTorch, with a backward of their own.

Shapes: T tokens, S slots, E experts, D model width, F expert width, N rows of one block, N' with
its padding. Names end with the shape where rows are gathered: ``x_ND`` has a row for each slot.

The loops handle one block of rows at a time (``moeut.ops.blocks``), so nothing of size (S, D) is
ever written. Kept for backward are the inputs and, in the MLP, the hidden activations (S, F) in
sorted order:

* the gate scales the hidden activations, so the down-projection's output is not needed;
* the ReLU's derivative is read off its output;
* the gate's gradient is <grad @ weightᵀ, input>, a by-product of the input's gradient.

Registered through ``torch.library``, so that ``torch.compile`` sees four opaque operators and no
graph break. They are differentiable once. The loop bounds are read on the host, so off the CPU each
call waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeut.ops import native
from moeut.ops.blocks import Plan, RowSum, Scratch, WeightGradient
from moeut.ops.differentiation import needs_gradient, only_needed, register_gradient
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
    if native.serves(x, weight, gate):
        sorted_slots = (dispatch.order, dispatch.offsets)
        slots = (slots_per_input, slots_per_output)
        return torch.ops.moeut_native.expert_linear(x, weight, *sorted_slots, gate, *slots)
    return _linear(
        x, weight, dispatch.order, dispatch.offsets, gate, slots_per_input, slots_per_output
    )


def expert_mlp(
    x: Tensor, w_up: Tensor, w_down: Tensor, dispatch: Dispatch, gate: Tensor | None
) -> Tensor:
    """Apply the whole expert MLP; see ``moeut.ops.expert_mlp``.

    Takes ``x`` (T, D), ``w_up`` (E, D, F), ``w_down`` (E, F, D) and ``gate`` (S,); returns (T, D).
    """
    if native.serves(x, w_up, w_down, gate):
        sorted_slots = (dispatch.order, dispatch.offsets)
        return torch.ops.moeut_native.expert_mlp(x, w_up, w_down, *sorted_slots, gate)
    keep_hidden = needs_gradient(x, w_up, w_down, gate)
    out, _hidden = _mlp(x, w_up, w_down, dispatch.order, dispatch.offsets, gate, keep_hidden)
    return out


@torch.library.custom_op("moeut::grouped_linear", mutates_args=())
def _linear(
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    width_in, width_out = weight.shape[1:]
    plan = Plan(weight, order, offsets, gate)
    out = RowSum(x, order.shape[0] // slots_per_output, width_out)
    scratch = Scratch(x, plan.max_rows, width_in)
    weights = weight.unbind(0)
    gate_input = width_in < width_out  # the gate scales the narrower side of the product
    for block, rows_in, rows_out, gates in zip(
        plan.blocks,
        plan.rows(slots_per_input),
        plan.rows(slots_per_output),
        plan.gates,
        strict=True,
    ):
        x_ND = scratch.gather(x, rows_in, block)
        if gates is not None and gate_input:
            scratch.rows(block).mul_(gates)
        y_NC = block.without_padding(block.routine.product(x_ND, weights[block.expert]))
        if gates is not None and not gate_input:
            y_NC *= gates
        out.add(rows_out, y_NC)
    return out.result()


@_linear.register_fake
def _(x, weight, order, offsets, gate, slots_per_input, slots_per_output):
    return x.new_empty(order.shape[0] // slots_per_output, weight.shape[2])


@torch.library.custom_op("moeut::grouped_linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and gate; those not in ``needs`` are empty."""
    need_x, need_weight, need_gate = needs
    width_in, width_out = weight.shape[1:]
    plan = Plan(weight, order, offsets, gate)
    d_x = RowSum(x, x.shape[0], width_in) if need_x else None
    d_weight = WeightGradient(weight, offsets) if need_weight else None
    sorted_d_gate = x.new_zeros(order.shape[0])
    x_scratch = Scratch(x, plan.max_rows, width_in)
    grad_scratch = Scratch(x, plan.max_rows, width_out)
    weights = weight.unbind(0)
    for block, rows_in, rows_out, gates, d_gate in zip(
        plan.blocks,
        plan.rows(slots_per_input),
        plan.rows(slots_per_output),
        plan.gates,
        plan.split(sorted_d_gate),
        strict=True,
    ):
        grad_NC = grad_scratch.gather(grad, rows_out, block)
        if need_weight or need_gate:
            x_ND = x_scratch.gather(x, rows_in, block)
        if need_x or need_gate:
            product = block.routine.product(grad_NC, weights[block.expert].t())
            d_ND = block.without_padding(product)
        if need_gate:
            torch.sum(d_ND * x_scratch.rows(block), 1, out=d_gate)
        if d_x is not None:
            d_x.add(rows_in, d_ND if gates is None else d_ND.mul_(gates))
        if d_weight is not None:
            if gates is not None:  # of the narrower side, in place: nothing reads it ungated again
                narrower = x_scratch if width_in < width_out else grad_scratch
                narrower.rows(block).mul_(gates)
            d_weight.add(block, x_ND, grad_NC)
    gradients = (
        None if d_x is None else d_x.result(),
        None if d_weight is None else d_weight.gradient,
        _by_slot(sorted_d_gate, order) if need_gate else None,
    )
    return only_needed(gradients, needs, x)


def _by_slot(sorted_values: Tensor, order: Tensor) -> Tensor:
    """Return values (S,) in sorted order by slot."""
    return torch.empty_like(sorted_values).index_copy_(0, order, sorted_values)


register_gradient(_linear, _linear_backward, wanted=(0, 1, 4), num_inputs=7)


@torch.library.custom_op("moeut::grouped_mlp", mutates_args=())
def _mlp(
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, D) and the hidden activations (S, F) in sorted order."""
    width, hidden_width = w_up.shape[1:]
    top_k = order.shape[0] // max(x.shape[0], 1)
    plan = Plan(w_up, order, offsets, gate)
    out = RowSum(x, x.shape[0], width)
    hidden = x.new_empty(order.shape[0] if keep_hidden else 0, hidden_width)
    hiddens: list[Tensor | None] = [None] * len(plan.blocks)
    if keep_hidden:
        hiddens = [*plan.split(hidden)]
        hidden[plan.num_routed :] = 0  # slots without an expert
    scratch = Scratch(x, plan.max_rows, width)
    ups, downs = w_up.unbind(0), w_down.unbind(0)
    for block, rows, gates, kept_NF in zip(
        plan.blocks, plan.rows(top_k), plan.gates, hiddens, strict=True
    ):
        x_ND = scratch.gather(x, rows, block)
        h_NF = block.routine.product(x_ND, ups[block.expert])
        if kept_NF is None or gates is None:
            h_NF.relu_()
        if kept_NF is not None:
            torch.clamp_min(block.without_padding(h_NF), 0, out=kept_NF)
        if gates is not None:
            real_NF = block.without_padding(h_NF)
            torch.mul(real_NF if kept_NF is None else kept_NF, gates, out=real_NF)
        y_ND = block.routine.product(h_NF, downs[block.expert])
        out.add(rows, block.without_padding(y_ND))
    return out.result(), hidden


@_mlp.register_fake
def _(x, w_up, w_down, order, offsets, gate, keep_hidden):
    num_rows = order.shape[0] if keep_hidden else 0
    return x.new_empty(x.shape), x.new_empty(num_rows, w_up.shape[2])


@torch.library.custom_op("moeut::grouped_mlp_backward", mutates_args=())
def _mlp_backward(
    grad: Tensor,
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    hidden: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w_up, w_down and gate; those not in ``needs`` are empty."""
    need_x, need_up, need_down, need_gate = needs
    width, hidden_width = w_up.shape[1:]
    top_k = order.shape[0] // max(x.shape[0], 1)
    plan = Plan(w_up, order, offsets, gate)
    d_x = RowSum(x, x.shape[0], width) if need_x else None
    d_up = WeightGradient(w_up, offsets) if need_up else None
    d_down = WeightGradient(w_down, offsets) if need_down else None
    sorted_d_gate = x.new_zeros(order.shape[0])
    x_scratch = Scratch(x, plan.max_rows, width)
    grad_scratch = Scratch(x, plan.max_rows, width)
    hidden_scratch = Scratch(x, plan.max_rows, hidden_width)
    ups, downs = w_up.unbind(0), w_down.unbind(0)
    for block, rows, gates, h_NF, d_gate in zip(
        plan.blocks,
        plan.rows(top_k),
        plan.gates,
        plan.split(hidden),
        plan.split(sorted_d_gate),
        strict=True,
    ):
        grad_ND = grad_scratch.gather(grad, rows, block)
        d_h = block.routine.product(grad_ND, downs[block.expert].t())  # (N', F)
        d_h_NF = block.without_padding(d_h)
        if need_gate:
            torch.sum(d_h_NF * h_NF, 1, out=d_gate)
        if d_down is not None:
            gated_NF = hidden_scratch.rows(block)
            if gates is None:
                gated_NF.copy_(h_NF)
            else:
                torch.mul(h_NF, gates, out=gated_NF)
            d_down.add(block, hidden_scratch.padded(block), grad_ND)
        if gates is not None:
            d_h_NF *= gates
        # The ReLU passed exactly what is positive in its output; padding is zero already.
        torch.ops.aten.threshold_backward.grad_input(d_h_NF, h_NF, 0, grad_input=d_h_NF)
        if d_up is not None:
            d_up.add(block, x_scratch.gather(x, rows, block), d_h)
        if d_x is not None:
            product = block.routine.product(d_h, ups[block.expert].t())
            d_x.add(rows, block.without_padding(product))
    gradients = (
        None if d_x is None else d_x.result(),
        None if d_up is None else d_up.gradient,
        None if d_down is None else d_down.gradient,
        _by_slot(sorted_d_gate, order) if need_gate else None,
    )
    return only_needed(gradients, needs, x)


register_gradient(_mlp, _mlp_backward, wanted=(0, 1, 2, 5), num_inputs=6)
