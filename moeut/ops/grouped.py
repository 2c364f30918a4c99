"""Compute the expert operations expert by expert in plain PyTorch, with a backward of their own.

Shapes: T tokens, S slots, E experts, D model width, F expert width, N rows of one block.

The loop handles one block at a time: rows of one expert, few enough that they stay in the
processor's cache from the gather to the scatter, so nothing of size (S, D) is ever written. Kept
for backward are the inputs and, in the MLP, the hidden activations (S, F) in sorted order:

* the gate scales the hidden activations, so the down-projection's output is not needed;
* the ReLU's derivative is read off its output;
* the gate's gradient is <grad @ weightᵀ, input>, a by-product of the input's gradient.

Registered through ``torch.library``, so that ``torch.compile`` sees four opaque operations and no
graph break. They are differentiable once. The loop bounds are read on the host, so off the CPU each
call waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from moeut.ops.dispatch import Dispatch
from moeut.ops.matmul import MAX_BLOCK_ROWS, Routine, choose_routine, padded_rows

LOW_PRECISION = (torch.bfloat16, torch.float16)

MIN_SHARED_ROWS = 320
"""Mean rows of a block from which on several threads add them to the output faster than one."""


def expert_linear(
    x: Tensor,
    weight: Tensor,
    dispatch: Dispatch,
    slots_per_input: int,
    slots_per_output: int,
    gate: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Sum gated per-expert linear maps of the slots; see ``moeut.ops.expert_linear``."""
    return _linear(
        x, weight, dispatch.order, dispatch.offsets, gate, bias, slots_per_input, slots_per_output
    )


def expert_mlp(
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    dispatch: Dispatch,
    gate: Tensor | None,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
) -> Tensor:
    """Apply the whole expert MLP; see ``moeut.ops.expert_mlp``."""
    inputs = (x, w_up, w_down, gate, bias_up, bias_down)
    keep_hidden = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in inputs
    )
    out, _hidden = _mlp(
        x, w_up, w_down, dispatch.order, dispatch.offsets, gate, bias_up, bias_down, keep_hidden
    )
    return out


class Block(NamedTuple):
    """Describe consecutive rows of the sorted order, all of one expert."""

    expert: int
    num_rows: int
    padded: int
    routine: Routine
    is_first: bool  # of its expert
    is_last: bool


def make_blocks(offsets: Tensor, weight: Tensor) -> list[Block]:
    """Cut the rows of every expert into blocks; experts without rows have none."""
    bounds = offsets.tolist()
    blocks = []
    for expert in range(len(bounds) - 1):
        first, last = bounds[expert], bounds[expert + 1]
        for start in range(first, last, MAX_BLOCK_ROWS):
            stop = min(start + MAX_BLOCK_ROWS, last)
            num_rows = stop - start
            routine = choose_routine(num_rows, weight)
            padded = padded_rows(num_rows) if routine.pads_rows else num_rows
            is_first, is_last = start == first, stop == last
            blocks.append(Block(expert, num_rows, padded, routine, is_first, is_last))
    return blocks


class _Plan:
    """Hold what every loop needs: blocks and, for each, its rows and gates."""

    def __init__(self, weight: Tensor, order: Tensor, offsets: Tensor, gate: Tensor | None) -> None:
        self.blocks = make_blocks(offsets, weight)
        self.sizes = [block.num_rows for block in self.blocks]
        self.num_routed = sum(self.sizes)
        self.order = order[: self.num_routed]
        self.max_rows = max((block.padded for block in self.blocks), default=0)
        self.gates: list[Tensor | None] = [None] * len(self.blocks)
        if gate is not None:
            self.gates = [*self.split(gate.index_select(0, self.order).unsqueeze(1))]

    def split(self, sorted_rows: Tensor) -> list[Tensor]:
        """Cut a tensor in sorted order into blocks."""
        return list(sorted_rows.split(self.sizes)) if self.sizes else []

    def rows(self, slots_per_row: int) -> list[Tensor]:
        """Return, for each block, the input (or output) row of each of its slots."""
        rows = self.order
        if slots_per_row > 1:
            rows = rows.div(slots_per_row, rounding_mode="floor")
        # Several threads sort int64 rows in every index_add_, which pays for large blocks alone;
        # int32 rows one thread adds.
        is_small = self.num_routed < MIN_SHARED_ROWS * len(self.blocks)
        if is_small and rows.device.type == "cpu" and torch.get_num_threads() > 1:
            rows = rows.to(torch.int32)
        return self.split(rows)


class _Scratch:
    """Lend the rows of one block a buffer, which stays in cache from block to block."""

    def __init__(self, like: Tensor, num_rows: int, width: int) -> None:
        self.buffer = like.new_zeros(num_rows, width)
        self.views: dict[int, tuple[Tensor, Tensor | None, Tensor]] = {}  # by number of rows

    def gather(self, source: Tensor, rows: Tensor, block: Block) -> Tensor:
        """Copy rows of the source into the buffer and return it with its padding."""
        torch.index_select(source, 0, rows, out=self.rows(block))
        return self.padded(block)

    def rows(self, block: Block) -> Tensor:
        """Return the buffer for the rows of a block, its padding left out."""
        return self._view(block)[0]

    def padded(self, block: Block) -> Tensor:
        """Return the buffer for the rows of a block with its padding, set to zero."""
        # Zeros and not stale rows: weight gradients sum over them, and 0 times a stale NaN is NaN.
        _rows, padding, padded = self._view(block)
        if padding is not None:
            padding.zero_()
        return padded

    def _view(self, block: Block) -> tuple[Tensor, Tensor | None, Tensor]:
        num_rows = block.num_rows
        if num_rows not in self.views:  # making views costs as much as copying a small block
            rows = padded = self.buffer.narrow(0, 0, num_rows)
            padding = None
            if block.padded > num_rows:
                padding = self.buffer.narrow(0, num_rows, block.padded - num_rows)
                padded = self.buffer.narrow(0, 0, block.padded)
            self.views[num_rows] = rows, padding, padded
        return self.views[num_rows]


def _head(rows: Tensor, block: Block) -> Tensor:
    return rows if block.padded == block.num_rows else rows.narrow(0, 0, block.num_rows)


class _RowSum:
    """Sum rows into an output, in float32 where the dtype has few bits."""

    def __init__(self, like: Tensor, num_rows: int, width: int) -> None:
        self.dtype = like.dtype
        self.wide = torch.float32 if like.dtype in LOW_PRECISION else like.dtype
        self.total = torch.zeros(num_rows, width, dtype=self.wide, device=like.device)

    def add(self, rows: Tensor, values: Tensor) -> None:
        if self.wide != self.dtype:
            values = values.to(self.wide)
        self.total.index_add_(0, rows, values)

    def result(self) -> Tensor:
        return self.total.to(self.dtype)


class _WeightGradient:
    """Collect the gradient of (E, ...) parameters block by block."""

    def __init__(self, parameter: Tensor, offsets: Tensor) -> None:
        self.gradient = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        self.per_expert = self.gradient.unbind(0)
        bounds = offsets.tolist()
        for expert, one in enumerate(self.per_expert):
            if bounds[expert] == bounds[expert + 1]:
                one.zero_()
        self.partial: Tensor | None = None

    def add_product(self, block: Block, left_NA: Tensor, right_NB: Tensor) -> None:
        if block.is_first and block.is_last:
            block.routine.row_sum_into(self.per_expert[block.expert], left_NA, right_NB)
        else:
            self.add(block, block.routine.product(left_NA.t(), right_NB))

    def add(self, block: Block, value: Tensor) -> None:
        if self.partial is None:
            self.partial = value.float() if value.dtype in LOW_PRECISION else value
        else:
            self.partial = self.partial + value
        if block.is_last:
            self.per_expert[block.expert].copy_(self.partial)
            self.partial = None


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(0)


@torch.library.custom_op("moeut::grouped_linear", mutates_args=())
def _linear(
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    width_in, width_out = weight.shape[1:]
    plan = _Plan(weight, order, offsets, gate)
    out = _RowSum(x, order.shape[0] // slots_per_output, width_out)
    scratch = _Scratch(x, plan.max_rows, width_in)
    weights = weight.unbind(0)
    biases = None if bias is None else bias.unbind(0)
    # The gate scales the narrower side of the product; a bias has to be inside it.
    gate_input = width_in < width_out and bias is None
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
        y = _head(block.routine.product(x_ND, weights[block.expert]), block)
        if biases is not None:
            y += biases[block.expert]
        if gates is not None and not gate_input:
            y *= gates
        out.add(rows_out, y)
    return out.result()


@_linear.register_fake
def _(x, weight, order, offsets, gate, bias, slots_per_input, slots_per_output):
    return x.new_empty(order.shape[0] // slots_per_output, weight.shape[2])


@torch.library.custom_op("moeut::grouped_linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    slots_per_input: int,
    slots_per_output: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, gate and bias; those not in ``needs`` are empty."""
    need_x, need_weight, need_gate, need_bias = needs
    width_in, width_out = weight.shape[1:]
    plan = _Plan(weight, order, offsets, gate)
    d_x = _RowSum(x, x.shape[0], width_in) if need_x else None
    d_weight = _WeightGradient(weight, offsets) if need_weight else None
    d_bias = _WeightGradient(bias, offsets) if bias is not None and need_bias else None
    sorted_d_gate = x.new_zeros(order.shape[0])
    d_gates = plan.split(sorted_d_gate.narrow(0, 0, plan.num_routed))
    x_scratch = _Scratch(x, plan.max_rows, width_in)
    grad_scratch = _Scratch(x, plan.max_rows, width_out)
    weights = weight.unbind(0)
    biases = None if bias is None else bias.unbind(0)
    blocks = zip(
        plan.blocks,
        plan.rows(slots_per_input),
        plan.rows(slots_per_output),
        plan.gates,
        d_gates,
        strict=True,
    )
    for block, rows_in, rows_out, gates, d_gate in blocks:
        grad_ND = grad_scratch.gather(grad, rows_out, block)
        if need_weight or need_gate:
            x_ND = x_scratch.gather(x, rows_in, block)
        if need_x or need_gate:
            d_rows = _head(block.routine.product(grad_ND, weights[block.expert].t()), block)
        if need_gate:
            torch.sum(d_rows * x_scratch.rows(block), 1, out=d_gate)
            if biases is not None:
                d_gate += grad_scratch.rows(block) @ biases[block.expert]
        if d_x is not None:
            d_x.add(rows_in, d_rows if gates is None else d_rows.mul_(gates))
        if gates is not None and (need_weight or need_bias):
            narrower = x_scratch if width_in < width_out and not need_bias else grad_scratch
            narrower.rows(block).mul_(gates)
        if d_weight is not None:
            d_weight.add_product(block, x_ND, grad_ND)
        if d_bias is not None:
            d_bias.add(block, grad_ND.sum(0))
    d_gate_slots = _empty(x)
    if need_gate:
        d_gate_slots = torch.empty_like(sorted_d_gate).index_copy_(0, order, sorted_d_gate)
    return (
        _empty(x) if d_x is None else d_x.result(),
        _empty(x) if d_weight is None else d_weight.gradient,
        d_gate_slots,
        _empty(x) if d_bias is None else d_bias.gradient,
    )


@_linear_backward.register_fake
def _(grad, x, weight, order, offsets, gate, bias, slots_per_input, slots_per_output, needs):
    return tuple(
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if need else x.new_empty(0)
        for need, t in zip(needs, (x, weight, gate, bias), strict=True)
    )


def _linear_setup_context(ctx, inputs, output):
    x, weight, order, offsets, gate, bias, slots_per_input, slots_per_output = inputs
    ctx.save_for_backward(x, weight, order, offsets, gate, bias)
    ctx.slots = (slots_per_input, slots_per_output)


def _linear_autograd(ctx, grad):
    x, weight, order, offsets, gate, bias = ctx.saved_tensors
    needs = [ctx.needs_input_grad[position] for position in (0, 1, 4, 5)]
    gradients = _linear_backward(grad, x, weight, order, offsets, gate, bias, *ctx.slots, needs)
    d_x, d_weight, d_gate, d_bias = _drop_unneeded(gradients, needs)
    return d_x, d_weight, None, None, d_gate, d_bias, None, None


def _drop_unneeded(gradients: tuple[Tensor, ...], needs: list[bool]) -> Iterator[Tensor | None]:
    return (g if need else None for g, need in zip(gradients, needs, strict=True))


_linear.register_autograd(_linear_autograd, setup_context=_linear_setup_context)


@torch.library.custom_op("moeut::grouped_mlp", mutates_args=())
def _mlp(
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, D) and the hidden activations (S, F) in sorted order."""
    width, hidden_width = w_up.shape[1:]
    top_k = order.shape[0] // max(x.shape[0], 1)
    plan = _Plan(w_up, order, offsets, gate)
    out = _RowSum(x, x.shape[0], width)
    hidden = x.new_empty(order.shape[0] if keep_hidden else 0, hidden_width)
    hiddens: list[Tensor | None] = [None] * len(plan.blocks)
    if keep_hidden:
        hiddens = [*plan.split(hidden.narrow(0, 0, plan.num_routed))]
        hidden[plan.num_routed :] = 0  # slots without an expert
    scratch = _Scratch(x, plan.max_rows, width)
    ups, downs = w_up.unbind(0), w_down.unbind(0)
    blocks = zip(plan.blocks, plan.rows(top_k), plan.gates, hiddens, strict=True)
    for block, rows, gates, kept in blocks:
        x_ND = scratch.gather(x, rows, block)
        h_NF = block.routine.product(x_ND, ups[block.expert])
        if bias_up is not None:
            h_NF += bias_up[block.expert]
        if kept is None or gates is None:
            h_NF.relu_()
        if kept is not None:
            torch.clamp_min(_head(h_NF, block), 0, out=kept)
        if gates is not None:
            rows_NF = _head(h_NF, block)
            torch.mul(rows_NF if kept is None else kept, gates, out=rows_NF)
        y_ND = _head(block.routine.product(h_NF, downs[block.expert]), block)
        if bias_down is not None:
            y_ND += bias_down[block.expert] if gates is None else gates * bias_down[block.expert]
        out.add(rows, y_ND)
    return out.result(), hidden


@_mlp.register_fake
def _(x, w_up, w_down, order, offsets, gate, bias_up, bias_down, keep_hidden):
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
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    hidden: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w_up, w_down, gate, bias_up, bias_down; others are empty."""
    need_x, need_up, need_down, need_gate, need_bias_up, need_bias_down = needs
    width, hidden_width = w_up.shape[1:]
    top_k = order.shape[0] // max(x.shape[0], 1)
    plan = _Plan(w_up, order, offsets, gate)
    d_x = _RowSum(x, x.shape[0], width) if need_x else None
    d_up = _WeightGradient(w_up, offsets) if need_up else None
    d_down = _WeightGradient(w_down, offsets) if need_down else None
    d_bias_up = _WeightGradient(bias_up, offsets) if bias_up is not None and need_bias_up else None
    d_bias_down = (
        _WeightGradient(bias_down, offsets) if bias_down is not None and need_bias_down else None
    )
    sorted_d_gate = x.new_zeros(order.shape[0])
    x_scratch = _Scratch(x, plan.max_rows, width)
    grad_scratch = _Scratch(x, plan.max_rows, width)
    hidden_scratch = _Scratch(x, plan.max_rows, hidden_width)
    ups, downs = w_up.unbind(0), w_down.unbind(0)
    blocks = zip(
        plan.blocks,
        plan.rows(top_k),
        plan.gates,
        plan.split(hidden.narrow(0, 0, plan.num_routed)),
        plan.split(sorted_d_gate.narrow(0, 0, plan.num_routed)),
        strict=True,
    )
    for block, rows, gates, h_NF, d_gate in blocks:
        grad_ND = grad_scratch.gather(grad, rows, block)
        d_h = block.routine.product(grad_ND, downs[block.expert].t())
        d_h_rows = _head(d_h, block)
        if need_gate:
            torch.sum(d_h_rows * h_NF, 1, out=d_gate)
            if bias_down is not None:
                d_gate += grad_scratch.rows(block) @ bias_down[block.expert]
        if d_down is not None:
            gated = hidden_scratch.rows(block)
            if gates is None:
                gated.copy_(h_NF)
            else:
                torch.mul(h_NF, gates, out=gated)
            gated_NF = hidden_scratch.padded(block)
            d_down.add_product(block, gated_NF, grad_ND)
        if d_bias_down is not None:
            rows_ND = grad_scratch.rows(block)
            d_bias_down.add(block, (rows_ND if gates is None else rows_ND * gates).sum(0))
        if gates is not None:
            d_h_rows *= gates
        # The ReLU passed exactly what is positive in its output; padding is zero already.
        torch.ops.aten.threshold_backward.grad_input(d_h_rows, h_NF, 0, grad_input=d_h_rows)
        if d_up is not None:
            x_ND = x_scratch.gather(x, rows, block)
            d_up.add_product(block, x_ND, d_h)
        if d_bias_up is not None:
            d_bias_up.add(block, d_h.sum(0))
        if d_x is not None:
            d_x.add(rows, _head(block.routine.product(d_h, ups[block.expert].t()), block))
    d_gate_slots = _empty(x)
    if need_gate:
        d_gate_slots = torch.empty_like(sorted_d_gate).index_copy_(0, order, sorted_d_gate)
    return (
        _empty(x) if d_x is None else d_x.result(),
        _empty(x) if d_up is None else d_up.gradient,
        _empty(x) if d_down is None else d_down.gradient,
        d_gate_slots,
        _empty(x) if d_bias_up is None else d_bias_up.gradient,
        _empty(x) if d_bias_down is None else d_bias_down.gradient,
    )


@_mlp_backward.register_fake
def _(grad, x, w_up, w_down, order, offsets, gate, bias_up, bias_down, hidden, needs):
    inputs = (x, w_up, w_down, gate, bias_up, bias_down)
    return tuple(
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if need else x.new_empty(0)
        for need, t in zip(needs, inputs, strict=True)
    )


def _mlp_setup_context(ctx, inputs, output):
    x, w_up, w_down, order, offsets, gate, bias_up, bias_down, _keep_hidden = inputs
    _out, hidden = output
    ctx.save_for_backward(x, w_up, w_down, order, offsets, gate, bias_up, bias_down, hidden)


def _mlp_autograd(ctx, grad, _grad_hidden):
    *inputs, hidden = ctx.saved_tensors
    needs = [ctx.needs_input_grad[position] for position in (0, 1, 2, 5, 6, 7)]
    gradients = _mlp_backward(grad, *inputs, hidden, needs)
    d_x, d_up, d_down, d_gate, d_bias_up, d_bias_down = _drop_unneeded(gradients, needs)
    return d_x, d_up, d_down, None, None, d_gate, d_bias_up, d_bias_down, None


_mlp.register_autograd(_mlp_autograd, setup_context=_mlp_setup_context)
