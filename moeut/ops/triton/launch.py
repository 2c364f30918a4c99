"""Launch the Triton kernels on tensors: allocate outputs and scratch, choose block sizes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from moeut.ops.triton.device import on_device
from moeut.ops.triton.kernels import row_product_kernel, row_sum_kernel, weight_gradient_kernel
from moeut.ops.triton.tuning import TUNER, Blocks, ShapeClass

MAX_SCRATCH_BYTES = 2**30
"""Outputs of slots that are to be summed are computed in slabs of columns of at most this size."""

MIN_WEIGHT_PROGRAMS = 512
"""With fewer programs a weight gradient would leave multiprocessors idle: rows are cut in parts."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Say which row of a matrix belongs to each slot: row slot // ``slots_per_row``.

    0 means that the rows are in sorted order, one for each sorted row.
    """

    values: Tensor
    """(rows, width), contiguous."""
    slots_per_row: int = 0


class Routing(NamedTuple):
    """Hold the sorted slots of one routing decision; see ``moeut.ops.Dispatch``."""

    order: Tensor
    """(S,) the slot of each sorted row."""
    offsets: Tensor
    """(E + 1,) first sorted row of each expert."""
    tiles: Tensor
    """(2, max_tiles) expert and first sorted row of each tile."""
    tile_rows: int
    """Sorted rows of a full tile."""

    @property
    def num_slots(self) -> int:
        """Return S."""
        return self.order.shape[0]

    @property
    def num_experts(self) -> int:
        """Return E."""
        return self.offsets.shape[0] - 1


class Product(NamedTuple):
    """Hold the results of a row product; those that were not asked for are empty."""

    output: Tensor
    """(S, width_out), or (S / slots_per_output, width_out) where sums are taken."""
    gated: Tensor
    """(S, width_out): gate · partner, of the epilogue ``relu_gradient``."""
    gate_gradient: Tensor
    """(S,), by slot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowProduct:
    """Describe a product of routed rows with their experts' matrices (``row_product_kernel``)."""

    routing: Routing
    inputs: Rows
    weight: Tensor
    """(E, width_in, width_out), or (E, width_out, width_in) where ``transposed``; contiguous."""
    transposed: bool = False
    slots_per_output: int = 0
    """Consecutive slots that are summed; 0: outputs of all slots, in sorted order."""
    epilogue: str = "linear"
    gate: Tensor | None = None
    """(S,), by slot."""
    partner: Rows | None = None
    """What the gradient of a gate or of a ReLU is taken with, ``width_out`` wide."""
    needs_output: bool = True

    def compute(self) -> Product:
        """Compute it, in the best block sizes known."""
        x, num_slots = self.inputs.values, self.routing.num_slots
        if num_slots == 0:
            empty = x.new_empty(0, self.width_out)
            return Product(empty, empty.clone(), x.new_empty(0))
        tile_rows, widths = self.routing.tile_rows, (self.width_in, self.width_out)
        epilogue = f"{self.epilogue}_transposed" if self.transposed else self.epilogue
        shape = ShapeClass("row_product", epilogue, x.dtype, tile_rows, *widths)
        with on_device(x):
            return self._compute(TUNER.choose(shape, x.device, self._compute))

    @property
    def width_in(self) -> int:
        """Return the width that the product sums over."""
        return self.weight.shape[2 if self.transposed else 1]

    @property
    def width_out(self) -> int:
        """Return the width of an output row."""
        return self.weight.shape[1 if self.transposed else 2]

    def _compute(self, blocks: Blocks) -> Product:
        x, num_slots = self.inputs.values, self.routing.num_slots
        num_tiles = triton.cdiv(self.width_out, blocks.columns)
        gated = gradient = x.new_empty(0)  # gradient: (column tiles, S) partial sums
        if self.gate is not None and self.epilogue.endswith("_gradient"):
            gradient = x.new_empty(num_tiles, num_slots, dtype=torch.float32)
            if self.epilogue == "relu_gradient":
                gated = x.new_empty(num_slots, self.width_out)
        if not self.needs_output:
            output = x.new_empty(0)
            self._launch(blocks, None, gated, gradient, 0, num_tiles)
        elif self.slots_per_output <= 1:
            output = x.new_empty(num_slots, self.width_out)
            self._launch(blocks, output, gated, gradient, 0, num_tiles)
        else:
            output = x.new_empty(num_slots // self.slots_per_output, self.width_out)
            self._sum_slabs(blocks, output, gradient)
        if gradient.numel():
            gradient = gradient[0] if num_tiles == 1 else gradient.sum(0)
        return Product(output, gated, gradient.to(x.dtype))

    def _sum_slabs(self, blocks: Blocks, output: Tensor, gradient: Tensor) -> None:
        """Compute slabs of columns of every slot's output, and sum each over slots.

        ``output`` is (S / slots_per_output, width_out), ``gradient`` (column tiles, S) or empty.
        """
        x, num_slots = self.inputs.values, self.routing.num_slots
        num_tiles = triton.cdiv(self.width_out, blocks.columns)
        fitting = max(1, MAX_SCRATCH_BYTES // (num_slots * blocks.columns * x.element_size()))
        # A power of two, so that few widths of slabs are ever compiled for.
        tiles_per_slab = min(num_tiles, 1 << (fitting.bit_length() - 1))
        buffer = x.new_empty(num_slots * min(self.width_out, tiles_per_slab * blocks.columns))
        for first in range(0, num_tiles, tiles_per_slab):
            count = min(tiles_per_slab, num_tiles - first)
            first_column = first * blocks.columns
            width = min(count * blocks.columns, self.width_out - first_column)
            slab = buffer[: num_slots * width].view(num_slots, width)
            self._launch(blocks, slab, x, gradient, first, count)
            sum_rows(slab, output, first_column, self.slots_per_output)

    def _launch(
        self,
        blocks: Blocks,
        output: Tensor | None,
        gated: Tensor,
        gradient: Tensor,
        first_column_tile: int,
        num_column_tiles: int,
    ) -> None:
        x, routing = self.inputs.values, self.routing
        max_tiles = routing.tiles.shape[1]
        weight = self._weight(blocks)
        num_blocks = max_tiles * (routing.tile_rows // blocks.rows)
        num_programs = num_blocks * triton.cdiv(num_column_tiles, blocks.span)
        if blocks.persistent:
            num_programs = min(num_programs, resident_programs(x.device, blocks.num_warps))
        row_product_kernel[(num_programs,)](
            *(x, weight, x if output is None else output, gated),
            x if self.partner is None else self.partner.values,
            x if self.gate is None else self.gate,
            *(gradient, routing.order, routing.offsets, routing.tiles),
            *(routing.num_slots, routing.num_experts, max_tiles, first_column_tile),
            num_column_tiles,
            WIDTH_IN=self.width_in,
            WIDTH_OUT=self.width_out,
            OUTPUT_STRIDE=self.width_out if output is None else output.shape[1],
            TRANSPOSED=self.transposed,
            SLOTS_PER_INPUT=self.inputs.slots_per_row,
            SLOTS_PER_PARTNER=0 if self.partner is None else self.partner.slots_per_row,
            BY_SLOT=self.slots_per_output > 0,
            EPILOGUE=self.epilogue,
            HAS_GATE=self.gate is not None,
            STORES_OUTPUT=output is not None,
            PRECISION=float32_precision(),
            TILE_ROWS=routing.tile_rows,
            BLOCK_ROWS=blocks.rows,
            BLOCK_OUT=blocks.columns,
            BLOCK_IN=blocks.depth,
            SPAN=blocks.span,
            DESCRIPTOR=isinstance(weight, TensorDescriptor),
            PERSISTENT=blocks.persistent,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )

    def _weight(self, blocks: Blocks) -> Tensor | TensorDescriptor:
        """Return the weight as the kernel reads it."""
        # The accelerator takes no address that is not a multiple of 16 bytes, as a view's may be.
        if not blocks.descriptor or self.weight.data_ptr() % 16:
            return self.weight
        block = (
            (blocks.columns, blocks.depth) if self.transposed else (blocks.depth, blocks.columns)
        )
        return TensorDescriptor.from_tensor(self.weight, [1, *block])


def resident_programs(device: torch.device, num_warps: int) -> int:
    """Return how many programs of a persistent kernel to start: two or more a multiprocessor."""
    if device.type != "cuda":
        return 3  # few, so that tests in the interpreter see programs with several tiles
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return multiprocessors * max(2, 16 // num_warps)


def sum_rows(rows: Tensor, output: Tensor, first_column: int, slots_per_output: int) -> None:
    """Write sums of consecutive rows (S, width) to some columns of the output.

    The columns are ``first_column:first_column + width`` of (S / slots_per_output, width_out).
    """
    num_rows, width = output.shape[0], rows.shape[1]
    block_columns = min(256, max(16, triton.next_power_of_2(width)))
    block_rows = 2048 // block_columns
    grid = (triton.cdiv(num_rows, block_rows) * triton.cdiv(width, block_columns),)
    row_sum_kernel[grid](
        *(rows, output, num_rows, first_column),
        WIDTH=width,
        OUTPUT_STRIDE=output.shape[1],
        SLOTS_PER_OUTPUT=slots_per_output,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
    )


class WeightSum(NamedTuple):
    """Ask for a weight's gradient in float32, added to the sum so far."""

    so_far: Tensor | None
    """(E, M, N) float32 and contiguous, changed in place; None: nothing yet."""


def weight_gradient(
    routing: Routing,
    left: Rows,
    right: Rows,
    *,
    gate: Tensor | None = None,
    weight_sum: WeightSum | None = None,
) -> Tensor:
    """Sum outer products over each expert's rows; see ``weight_gradient_kernel``.

    Returns the gradient of a weight (E, left width, right width) in the dtype of the rows; with
    ``weight_sum`` in float32, and with the sum so far in it.
    """
    so_far = None if weight_sum is None else weight_sum.so_far
    x = right.values
    num_experts = routing.num_experts
    shape = (num_experts, left.values.shape[1], x.shape[1])
    dtype = x.dtype if weight_sum is None else torch.float32
    if routing.num_slots == 0:
        return x.new_zeros(shape, dtype=dtype) if so_far is None else so_far

    def launch(blocks: Blocks, so_far: Tensor | None = None) -> Tensor:
        tiles = triton.cdiv(shape[1], blocks.rows) * triton.cdiv(shape[2], blocks.columns)
        num_parts = min(8, triton.cdiv(MIN_WEIGHT_PROGRAMS, num_experts * tiles))
        is_whole = num_parts == 1
        if is_whole and so_far is not None:
            gradient = so_far.unsqueeze(0)  # (1, E, left width, right width), added to in place
        else:
            part_dtype = dtype if is_whole else torch.float32
            gradient = x.new_empty(num_parts, *shape, dtype=part_dtype)
        weight_gradient_kernel[(num_parts * num_experts * tiles,)](
            *(left.values, x, gradient, x if gate is None else gate),
            *(routing.order, routing.offsets, num_experts),
            WIDTH_LEFT=shape[1],
            WIDTH_RIGHT=shape[2],
            SLOTS_PER_LEFT=left.slots_per_row,
            SLOTS_PER_RIGHT=right.slots_per_row,
            HAS_GATE=gate is not None,
            NUM_PARTS=num_parts,
            ADDS=is_whole and so_far is not None,
            PRECISION=float32_precision(),
            BLOCK_LEFT=blocks.rows,
            BLOCK_RIGHT=blocks.columns,
            BLOCK_ROWS=blocks.depth,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
        if is_whole:
            return gradient[0]
        total = gradient.sum(0)
        return (total if so_far is None else so_far.add_(total)).to(dtype)

    epilogue = "plain" if gate is None else "gated"
    shape_class = ShapeClass("weight_gradient", epilogue, x.dtype, routing.tile_rows, *shape[1:])
    with on_device(x):
        # Without the sum so far: a search launches many times, and must add nothing to it.
        blocks = TUNER.choose(shape_class, x.device, launch)
        return launch(blocks, so_far)


def float32_precision() -> str:
    """Return how float32 is multiplied: exactly, or in TF32 where PyTorch was told to as well."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
