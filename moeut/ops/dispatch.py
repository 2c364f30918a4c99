"""Sort the slots of one routing decision by expert, once, for every matmul that uses it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moeut.ops import backend as backends
from moeut.ops import native

RADIX_SORT_SIZE = 32768
"""PyTorch sorts integers on the CPU by radix from this size on, about ten times faster."""


@dataclass(frozen=True)
class Dispatch:
    """Hold one routing decision, sorted by expert.

    A *slot* is one routed copy: S slots, E experts. All four tensors are int64 and live on the
    device of the routing decision. Sorted rows ``offsets[e]:offsets[e + 1]`` belong to expert e;
    ``order[r]`` is the slot of sorted row r. Slots without an expert come last in ``order``, behind
    ``offsets[E]``.
    """

    expert_index: Tensor
    """(S,) expert of each slot; -1 means no expert."""

    order: Tensor
    """(S,) slots, sorted by expert; the sort is stable, so slots stay ascending in an expert."""

    counts: Tensor
    """(E,) slots of each expert."""

    offsets: Tensor
    """(E + 1,) first sorted row of each expert; the last entry is the number of routed slots."""

    num_experts: int
    """E."""

    tiles: Tensor | None = None
    """(2, max_tiles) expert and first sorted row of each tile of the Triton kernels."""

    tile_rows: int = 0
    """Sorted rows of a full tile."""

    @property
    def num_slots(self) -> int:
        """Return S, slots without an expert included."""
        return self.expert_index.shape[0]

    @classmethod
    def from_indices(
        cls, expert_index: Tensor, num_experts: int, *, backend: str = "auto"
    ) -> Dispatch:
        """Sort the slots of a routing decision by expert.

        ``expert_index`` is integer of any shape, with values in [-1, num_experts), flattened to S
        slots; -1 marks a slot without an expert (padding, a halted token, a dropped expert). Raises
        ValueError for another dtype or ``num_experts < 1``; on the CPU also for a value out of
        range. On other devices values are not looked at, because that would wait for the device.
        Every backend can use the dispatch that any other has sorted.
        """
        if num_experts < 1:
            raise ValueError(f"num_experts={num_experts}: expected at least 1")
        if expert_index.dtype not in (torch.int64, torch.int32, torch.int16):
            raise ValueError(
                f"expert_index.dtype={expert_index.dtype}: expected torch.int64 (or int32, int16)"
            )
        # Every second index of a row is still a view when it is flat: the sort reads no strides.
        flat = expert_index.detach().reshape(-1).to(torch.int64).contiguous()
        with_triton = backends.resolve_backend(backend, flat.device) == "triton"
        if not with_triton and native.sorts(flat):
            order, counts, offsets = torch.ops.moeut_native.sort_slots(flat, num_experts)
            return cls(flat, order, counts, offsets, num_experts)
        if flat.numel() and backends.can_look(flat):
            low, high = (int(bound) for bound in torch.aminmax(flat))
            if low < -1 or high >= num_experts:
                raise ValueError(
                    f"expert_index has values from {low} to {high}: expected -1 (no expert) to "
                    f"{num_experts - 1} (num_experts={num_experts})"
                )
        if with_triton:
            from moeut.ops.triton import dispatch
            from moeut.ops.triton.device import compute_capability

            tile_rows = dispatch.choose_tile_rows(
                flat.shape[0], num_experts, compute_capability(flat.device)
            )
            sorted_slots = dispatch.dispatch(flat, num_experts, tile_rows)
            order, counts, offsets, tiles = sorted_slots
            return cls(flat, order, counts, offsets, num_experts, tiles, tile_rows)
        # No expert sorts behind every expert, so that routed rows are one prefix of the order.
        key = torch.where(flat < 0, num_experts, flat)
        sorted_key, order = _sort_keys(key, num_experts)
        # bincount would synchronise on CUDA; a binary search on the sorted keys does not.
        bounds = torch.arange(num_experts + 1, dtype=sorted_key.dtype, device=flat.device)
        offsets = torch.searchsorted(sorted_key, bounds)
        return cls(flat, order, offsets.diff(), offsets, num_experts)


def _sort_keys(key: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Return the sorted keys (values 0 to num_experts) and the slots in that order, stably."""
    num_slots = key.shape[0]
    if key.device.type == "cpu":
        key = key.to(torch.int16 if num_experts < 2**15 else torch.int32)
        if RADIX_SORT_SIZE // 8 <= num_slots < RADIX_SORT_SIZE:
            # The added keys are the largest and come last, so the sort leaves them at the end.
            padding = key.new_full((RADIX_SORT_SIZE - num_slots,), num_experts)
            key = torch.cat((key, padding))
    sorted_key, order = torch.sort(key, stable=True)
    return sorted_key[:num_slots], order[:num_slots]
