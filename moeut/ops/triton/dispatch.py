"""Sort slots by expert on the device: count, scan, place; four launches and no synchronisation.

Shapes: S slots, E experts, G = E + 1 groups: the experts, and behind them the slots without one
(index outside 0 to E - 1).

A counting sort. It computes the place of every slot, where other sorts let threads race for places;
so the order is stable and the same in every run:

1. the slots of each expert are counted in blocks of consecutive slots;
2. each expert's counts are summed over the earlier blocks;
3. totals give the experts' first rows, and the tiles that the matmul kernels work through;
4. a slot's row is its expert's first row, plus the expert's slots in earlier blocks, plus those
   before it in its own block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moeut.ops.triton.device import on_device

BLOCK_SLOTS = 128
"""Slots of one block; ``place_kernel`` compares every pair of them."""

SCAN_BLOCKS = 1024
"""Blocks whose counts are summed in one step."""

MAX_COUNTED_EXPERTS = 4096
"""Up to this many experts a block's counts fit in a multiprocessor; beyond, PyTorch sorts."""

MAX_SLOTS = 2**31 - 1
"""Counts are 32 bits wide."""


@triton.jit(do_not_specialize=["num_slots", "num_experts"])
def count_kernel(
    index_ptr, counts_ptr, num_slots, num_experts, BINS: tl.constexpr, BLOCK: tl.constexpr
):
    """Count the slots of each group in each block: index (S,) → counts (blocks, G)."""
    block = tl.program_id(0).to(tl.int64)
    slots = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(index_ptr + slots, mask=slots < num_slots, other=-1).to(tl.int32)
    group = tl.where((expert >= 0) & (expert < num_experts), expert, num_experts)
    # A bin of their own for what is behind the last slot; it is not stored.
    group = tl.where(slots < num_slots, group, num_experts + 1)
    counts = tl.histogram(group, BINS)
    bins = tl.arange(0, BINS)
    tl.store(counts_ptr + block * (num_experts + 1) + bins, counts, mask=bins <= num_experts)


@triton.jit(do_not_specialize=["num_blocks", "num_groups"])
def scan_kernel(counts_ptr, totals_ptr, num_blocks, num_groups, BLOCK: tl.constexpr):
    """Replace each count (blocks, G) by the sum of its group's earlier ones; write totals (G,).

    One program scans one group, BLOCK counts at a time.
    """
    group = tl.program_id(0)
    total = tl.zeros((), dtype=tl.int32)
    for first in range(0, num_blocks, BLOCK):
        blocks = first + tl.arange(0, BLOCK)
        pointers = counts_ptr + blocks.to(tl.int64) * num_groups + group
        counts = tl.load(pointers, mask=blocks < num_blocks, other=0)
        earlier = total + tl.cumsum(counts, 0) - counts
        tl.store(pointers, earlier, mask=blocks < num_blocks)
        total += tl.sum(counts, 0)
    tl.store(totals_ptr + group, total)


@triton.jit(do_not_specialize=["num_experts", "max_tiles"])
def offset_kernel(
    totals_ptr,
    counts_ptr,
    offsets_ptr,
    tiles_ptr,
    num_experts,
    max_tiles,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one group's count, first row and tiles; program E + 1 marks the tiles left over.

    From totals (G,) come counts (E,), offsets (G,) and tiles (2, max_tiles): group and first row.
    """
    group = tl.program_id(0)
    offset = tl.zeros((), dtype=tl.int64)
    first_tile = tl.zeros((), dtype=tl.int64)
    for first in range(0, group, BLOCK):
        groups = first + tl.arange(0, BLOCK)
        totals = tl.load(totals_ptr + groups, mask=groups < group, other=0).to(tl.int64)
        offset += tl.sum(totals, 0)
        first_tile += tl.sum((totals + (TILE_ROWS - 1)) // TILE_ROWS, 0)
    is_group = group <= num_experts
    total = tl.load(totals_ptr + group, mask=is_group, other=0).to(tl.int64)
    tl.store(offsets_ptr + group, offset, mask=is_group)
    tl.store(counts_ptr + group, total, mask=group < num_experts)
    num_tiles = (total + (TILE_ROWS - 1)) // TILE_ROWS
    if group > num_experts:
        num_tiles = max_tiles - first_tile
    expert = tl.where(is_group, group, -1).to(tl.int64)
    for first in range(0, num_tiles.to(tl.int32), BLOCK):
        tiles = first + tl.arange(0, BLOCK)
        pointers = tiles_ptr + first_tile + tiles
        tl.store(pointers, tl.zeros((BLOCK,), tl.int64) + expert, mask=tiles < num_tiles)
        first_rows = offset + tiles.to(tl.int64) * TILE_ROWS
        tl.store(pointers + max_tiles, first_rows, mask=tiles < num_tiles)


@triton.jit(do_not_specialize=["num_slots", "num_experts"])
def place_kernel(
    index_ptr,
    earlier_ptr,
    offsets_ptr,
    order_ptr,
    num_slots,
    num_experts,
    BLOCK: tl.constexpr,
):
    """Write each slot to its row of the sorted order (S,)."""
    block = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK)
    slots = block * BLOCK + position
    mask = slots < num_slots
    expert = tl.load(index_ptr + slots, mask=mask, other=-1).to(tl.int32)
    group = tl.where((expert >= 0) & (expert < num_experts), expert, num_experts)
    # (BLOCK, BLOCK): row i marks the slots j < i of the same group.
    is_earlier = (group[:, None] == group[None, :]) & (position[:, None] > position[None, :])
    row = tl.sum(is_earlier.to(tl.int32), 1).to(tl.int64)
    row += tl.load(offsets_ptr + group, mask=mask, other=0)
    row += tl.load(earlier_ptr + block * (num_experts + 1) + group, mask=mask, other=0)
    tl.store(order_ptr + row, slots, mask=mask)


def choose_tile_rows(num_slots: int, num_experts: int, capability: tuple[int, int]) -> int:
    """Return the rows of one tile, by the mean number of rows of an expert.

    An expert wastes half a tile on average, so that tiles of 128 rows would double the work of
    experts with 64 rows. Only Hopper and later hold 256 rows of a product and what they need.
    """
    mean = num_slots / num_experts
    if mean >= 1536 and capability >= (9, 0):
        return 256
    return 128 if mean >= 384 else 64 if mean >= 96 else 32 if mean >= 24 else 16


def max_num_tiles(num_slots: int, num_experts: int, tile_rows: int) -> int:
    """Return a bound on the number of tiles that holds whatever the counts are.

    So the tiles can be allocated without waiting for the device.
    """
    return min(num_slots, num_slots // tile_rows + num_experts + 1)


@torch.library.custom_op("moeut::triton_dispatch", mutates_args=())
def dispatch(
    index: Tensor, num_experts: int, tile_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return order (S,), counts (E,), offsets (E + 1,) and tiles (2, max_tiles), all int64.

    ``index`` (S,) int64 holds the expert of each slot. Raises ValueError for more slots than
    fit in 32 bits.
    """
    num_slots = index.shape[0]
    if num_slots > MAX_SLOTS:
        raise ValueError(f"expert_index has {num_slots} values: expected at most {MAX_SLOTS}")
    if num_experts > MAX_COUNTED_EXPERTS:
        return _sort(index, num_experts, tile_rows)
    order, counts, offsets, tiles = _empty(index, num_experts, tile_rows)
    num_blocks = triton.cdiv(num_slots, BLOCK_SLOTS)
    groups = num_experts + 1
    block_counts = index.new_empty(num_blocks, groups, dtype=torch.int32)
    totals = index.new_empty(groups, dtype=torch.int32)
    index = index.contiguous()
    with on_device(index):
        if num_slots:
            bins = triton.next_power_of_2(num_experts + 2)
            count_kernel[(num_blocks,)](
                index, block_counts, num_slots, num_experts, BINS=bins, BLOCK=BLOCK_SLOTS
            )
        scan_kernel[(groups,)](block_counts, totals, num_blocks, groups, BLOCK=SCAN_BLOCKS)
        _write_offsets(totals, counts, offsets, tiles, num_experts, tile_rows)
        if num_slots:
            place_kernel[(num_blocks,)](
                index, block_counts, offsets, order, num_slots, num_experts, BLOCK=BLOCK_SLOTS
            )
    return order, counts, offsets, tiles


@dispatch.register_fake
def _(index, num_experts, tile_rows):
    return _empty(index, num_experts, tile_rows)


@torch.library.custom_op("moeut::triton_tiles", mutates_args=())
def make_tiles(offsets: Tensor, num_slots: int, tile_rows: int) -> Tensor:
    """Return the tiles (2, max_tiles) of slots that are sorted already.

    ``offsets`` (E + 1,) are the experts' first rows.
    """
    num_experts = offsets.shape[0] - 1
    end = offsets.new_full((1,), num_slots)
    totals = torch.cat((offsets, end)).diff().to(torch.int32)
    tiles = offsets.new_empty(2, max_num_tiles(num_slots, num_experts, tile_rows))
    with on_device(offsets):
        counts, unused = torch.empty_like(offsets), torch.empty_like(offsets)
        _write_offsets(totals, counts, unused, tiles, num_experts, tile_rows)
    return tiles


@make_tiles.register_fake
def _(offsets, num_slots, tile_rows):
    return offsets.new_empty(2, max_num_tiles(num_slots, offsets.shape[0] - 1, tile_rows))


def _empty(
    index: Tensor, num_experts: int, tile_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    max_tiles = max_num_tiles(index.shape[0], num_experts, tile_rows)
    return (
        index.new_empty(index.shape[0], dtype=torch.int64),
        index.new_empty(num_experts, dtype=torch.int64),
        index.new_empty(num_experts + 1, dtype=torch.int64),
        index.new_empty(2, max_tiles, dtype=torch.int64),
    )


def _write_offsets(
    totals: Tensor, counts: Tensor, offsets: Tensor, tiles: Tensor, num_experts: int, tile_rows: int
) -> None:
    offset_kernel[(num_experts + 2,)](
        *(totals, counts, offsets, tiles, num_experts, tiles.shape[1]),
        TILE_ROWS=tile_rows,
        BLOCK=256,
    )


def _sort(index: Tensor, num_experts: int, tile_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    is_routed = (index >= 0) & (index < num_experts)
    key, order = torch.sort(torch.where(is_routed, index, num_experts), stable=True)
    offsets = torch.searchsorted(key, torch.arange(num_experts + 1, device=index.device))
    return order, offsets.diff(), offsets, make_tiles(offsets, index.shape[0], tile_rows)
