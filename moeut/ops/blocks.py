"""Walk through the sorted rows of all experts, block by block, without writing (S, D) anywhere.

Shapes: S slots, R ≤ S slots with an expert, E experts, N rows of one block, N' ≥ N with padding.

A *block* is rows of one expert, few enough that they stay in the processor's cache from the gather
to the scatter. ``Plan`` cuts the sorted order in blocks, ``Scratch`` lends a block the buffer that
its rows are gathered into, ``RowSum`` adds its output rows to the result, ``WeightGradient``
collects what it gives to its expert's gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moeut.ops.products import MAX_BLOCK_ROWS, Routine, choose_routine, padded_rows

LOW_PRECISION = (torch.bfloat16, torch.float16)

MIN_SHARED_ROWS = 320
"""Mean rows of a block from which on several threads add them to the output faster than one."""


class Block(NamedTuple):
    """Describe consecutive rows of the sorted order, all of one expert."""

    expert: int
    num_rows: int
    """N."""
    padded: int
    """N'."""
    routine: Routine
    is_first: bool
    """Whether it begins its expert."""
    is_last: bool
    """Whether it ends its expert."""

    def without_padding(self, rows: Tensor) -> Tensor:
        """Return the first N rows of (N', width)."""
        return rows if self.padded == self.num_rows else rows.narrow(0, 0, self.num_rows)


def make_blocks(offsets: Tensor, weight: Tensor) -> list[Block]:
    """Cut the rows of every expert into blocks; experts without rows have none.

    ``offsets`` (E + 1,) are the experts' first rows; ``weight`` (E, M, N) is what they are
    multiplied by.
    """
    bounds = offsets.tolist()  # off the CPU, this waits for the device
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


class Plan:
    """Hold what every loop over blocks needs: the blocks and, for each, its rows and gates."""

    def __init__(self, weight: Tensor, order: Tensor, offsets: Tensor, gate: Tensor | None) -> None:
        self.blocks = make_blocks(offsets, weight)
        self.sizes = [block.num_rows for block in self.blocks]
        self.num_routed = sum(self.sizes)
        """R."""
        self.order = order[: self.num_routed]  # (R,) slots; those without an expert come behind
        self.max_rows = max((block.padded for block in self.blocks), default=0)
        self.gates: list[Tensor | None] = [None] * len(self.blocks)
        """(N, 1) of each block."""
        if gate is not None:
            self.gates = [*self.split(gate.index_select(0, self.order).unsqueeze(1))]

    def split(self, sorted_rows: Tensor) -> list[Tensor]:
        """Cut a tensor of R or more rows in sorted order into the N rows of each block."""
        if not self.sizes:
            return []
        return list(sorted_rows.narrow(0, 0, self.num_routed).split(self.sizes))

    def rows(self, slots_per_row: int) -> list[Tensor]:
        """Return, for each block, the input (or output) row (N,) of each of its slots."""
        rows = self.order
        if slots_per_row > 1:
            rows = rows.div(slots_per_row, rounding_mode="floor")
        # Several threads sort int64 rows in every index_add_, which pays for large blocks alone;
        # int32 rows one thread adds.
        is_small = self.num_routed < MIN_SHARED_ROWS * len(self.blocks)
        if is_small and rows.device.type == "cpu" and torch.get_num_threads() > 1:
            rows = rows.to(torch.int32)
        return self.split(rows)


class Scratch:
    """Lend the rows of one block a buffer, which stays in cache from block to block."""

    def __init__(self, like: Tensor, num_rows: int, width: int) -> None:
        self.buffer = like.new_zeros(num_rows, width)
        self.views: dict[int, tuple[Tensor, Tensor | None, Tensor]] = {}  # by number of rows

    def gather(self, source: Tensor, rows: Tensor, block: Block) -> Tensor:
        """Copy rows (N,) of the source into the buffer and return it, (N', width)."""
        torch.index_select(source, 0, rows, out=self.rows(block))
        return self.padded(block)

    def rows(self, block: Block) -> Tensor:
        """Return the buffer for the rows of a block, (N, width)."""
        return self._view(block)[0]

    def padded(self, block: Block) -> Tensor:
        """Return the buffer for the rows of a block with its padding set to zero, (N', width)."""
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


class RowSum:
    """Sum rows into an output (num_rows, width), in float32 where the dtype has few bits."""

    def __init__(self, like: Tensor, num_rows: int, width: int) -> None:
        self.dtype = like.dtype
        self.wide = torch.float32 if like.dtype in LOW_PRECISION else like.dtype
        self.total = torch.zeros(num_rows, width, dtype=self.wide, device=like.device)

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add ``values`` (N, width) to the given rows (N,)."""
        if self.wide != self.dtype:
            values = values.to(self.wide)
        self.total.index_add_(0, rows, values)

    def result(self) -> Tensor:
        """Return the sums (num_rows, width) in the dtype of the output."""
        return self.total.to(self.dtype)


class WeightGradient:
    """Collect the gradient of a weight (E, A, B) block by block, in their order."""

    def __init__(self, weight: Tensor, offsets: Tensor) -> None:
        self.gradient = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        self.per_expert = self.gradient.unbind(0)
        bounds = offsets.tolist()
        for expert, one in enumerate(self.per_expert):
            if bounds[expert] == bounds[expert + 1]:
                one.zero_()
        self.partial: Tensor | None = None  # (A, B) of an expert with more blocks to come

    def add(self, block: Block, left: Tensor, right: Tensor) -> None:
        """Add leftᵀ @ right, of (N', A) and (N', B) rows, whose padding is zero."""
        if block.is_first and block.is_last:
            block.routine.row_sum_into(self.per_expert[block.expert], left, right)
            return
        value = block.routine.product(left.t(), right)
        if self.partial is None:
            self.partial = value.float() if value.dtype in LOW_PRECISION else value
        else:
            self.partial = self.partial + value
        if block.is_last:
            self.per_expert[block.expert].copy_(self.partial)
            self.partial = None
