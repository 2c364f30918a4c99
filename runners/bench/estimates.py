"""Estimate, from a compiled kernel and the size of its work, what it will be bound by.

Counted is what each tile of the result multiplies and moves between its multiprocessor and the
second-level cache, at the mean number of rows of an expert. A real launch is slower: the estimate
knows nothing of latencies. It orders configurations, and says which resource to save.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from runners.bench.sizes import HeadSize, MlpSize


@dataclasses.dataclass(frozen=True)
class Device:
    """Hold what a multiprocessor has, and the rates of the whole device."""

    registers: int
    shared_bytes: int
    warps: int
    multiprocessors: int
    tflop_per_second: float | None = None
    """Of bfloat16 products that reach what a large one does; None: not known, not estimated."""

    cache_terabytes_per_second: float = 0.0
    """From the second-level cache to all multiprocessors."""


DEVICES = {
    80: Device(65536, 164 * 1024, 64, 108, 250.0, 4.0),  # A100; rates assumed
    90: Device(65536, 228 * 1024, 64, 132, 790.0, 5.5),  # H200; products measured, cache assumed
    100: Device(65536, 228 * 1024, 64, 148),  # B200
}
MAX_BLOCKS = 32
RESERVED_SHARED_BYTES = 1024
REGISTER_UNIT = 256
"""Registers are given to a warp in multiples of this."""


def occupancy(
    device: Device, *, registers: int, shared_bytes: int, num_warps: int
) -> dict[str, Any]:
    """Return how many blocks a multiprocessor holds, its share of warps, and what limits it."""
    per_warp = math.ceil(32 * registers / REGISTER_UNIT) * REGISTER_UNIT
    limits = {
        "registers": device.registers // (per_warp * num_warps),
        "shared memory": device.shared_bytes // (shared_bytes + RESERVED_SHARED_BYTES),
        "warps": device.warps // num_warps,
        "blocks": MAX_BLOCKS,
    }
    limit, blocks = min(limits.items(), key=lambda item: item[1])
    return {
        "blocks_per_multiprocessor": blocks,
        "occupancy": round(blocks * num_warps / device.warps, 3),
        "limited_by": limit,
    }


def tile_work(constants: dict[str, Any], element_bytes: int, rows: float) -> dict[str, float]:
    """Return the operations and bytes of one tile of a product; empty for other kernels.

    ``rows`` is how many rows an expert has, which a weight gradient sums over.
    """
    if "WIDTH_IN" in constants and "BLOCK_OUT" in constants:
        tile_rows, width = constants["BLOCK_ROWS"], constants["WIDTH_IN"]
        columns = min(constants["BLOCK_OUT"], constants["WIDTH_OUT"])
        gradient = str(constants.get("EPILOGUE", "")).endswith("_gradient")
        # The result, its partner, and the gated partner of a ReLU.
        results = 1 + gradient + (constants.get("EPILOGUE") == "relu_gradient")
        # A program loads its rows for each block of columns, or once where they fit in a step.
        span = min(constants["SPAN"], math.ceil(constants["WIDTH_OUT"] / constants["BLOCK_OUT"]))
        loads = 1 if width <= constants["BLOCK_IN"] else span
        elements = loads * tile_rows * width + span * (width + results * tile_rows) * columns
        flop = 2.0 * tile_rows * span * columns * width
        return {"flop_per_tile": flop, "bytes_per_tile": element_bytes * elements}
    if "WIDTH_LEFT" in constants and "BLOCK_LEFT" in constants:
        left = min(constants["BLOCK_LEFT"], constants["WIDTH_LEFT"])
        right = min(constants["BLOCK_RIGHT"], constants["WIDTH_RIGHT"])
        rows /= constants.get("NUM_PARTS", 1)
        elements = (left + right) * rows + left * right
        return {
            "flop_per_tile": 2.0 * left * right * rows,
            "bytes_per_tile": element_bytes * elements,
        }
    return {}


def num_tiles(constants: dict[str, Any], size: MlpSize | HeadSize) -> float:
    """Return how many tiles there are: half a tile of each expert's rows is empty on average."""
    if "WIDTH_IN" in constants:
        row_tiles = size.num_slots / constants["BLOCK_ROWS"] + size.total_experts / 2
        column_tiles = math.ceil(constants["WIDTH_OUT"] / constants["BLOCK_OUT"])
        return row_tiles * math.ceil(column_tiles / constants["SPAN"])
    parts = constants.get("NUM_PARTS", 1) * size.total_experts
    left = math.ceil(constants["WIDTH_LEFT"] / constants["BLOCK_LEFT"])
    return parts * left * math.ceil(constants["WIDTH_RIGHT"] / constants["BLOCK_RIGHT"])


def estimate(row: dict[str, Any], size: MlpSize | HeadSize, element_bytes: int) -> dict[str, Any]:
    """Return what a compiled kernel's resources and tiles say; of a product also what bounds it."""
    device = DEVICES[row["capability"] // 10 * 10]
    constants = row["constants"]
    held = occupancy(
        device,
        registers=row["registers"],
        shared_bytes=row["shared_bytes"],
        num_warps=row.get("num_warps", 4),
    )
    work = tile_work(constants, element_bytes, size.num_slots / size.total_experts)
    if not work:
        return held
    tiles = num_tiles(constants, size)
    useful = size.forward_flop / (2 if isinstance(size, MlpSize) else 1)
    places = device.multiprocessors * held["blocks_per_multiprocessor"]
    counted = {
        **held,
        **work,
        "flop_per_byte": round(work["flop_per_tile"] / work["bytes_per_tile"], 1),
        "tiles": round(tiles),
        "waves": round(tiles / places, 2) if places else None,
        "waste": round(tiles * work["flop_per_tile"] / useful - 1, 3),
    }
    if device.tflop_per_second is None:
        return counted
    compute = tiles * work["flop_per_tile"] / device.tflop_per_second / 1e9
    cache = tiles * work["bytes_per_tile"] / device.cache_terabytes_per_second / 1e9
    return counted | {
        "compute_ms": round(compute, 4),
        "cache_ms": round(cache, 4),
        "bound_by": "compute" if compute >= cache else "cache",
    }
