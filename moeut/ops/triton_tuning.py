"""Block sizes of the Triton kernels: defaults, and a search whose results are kept on disk.

A kernel's block sizes depend on its *shape class*: kernel, dtype, widths and rows of a tile. The
number of tokens enters only by the rows of a tile, which take four values, so that another batch
size never starts a search. Nothing is ever searched for unasked: without a result on disk the
defaults serve. ``warmup`` searches:

    warmup(lambda: model(tokens).logits.sum().backward())

Block sizes change in which order numbers are summed, so that runs on one machine repeat bit by bit
as long as nothing is searched for between them.

Results are kept in one file per GPU and Triton version in ``$MOEUT_CACHE`` or ~/.cache/moeut.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton

logger = logging.getLogger(__name__)

SEARCH_REPEATS = 7


@dataclasses.dataclass(frozen=True)
class ShapeClass:
    """Name what the best block sizes may depend on."""

    kernel: str
    """``row_product`` or ``weight_gradient``."""

    epilogue: str
    """What follows on a row product, which takes registers."""

    dtype: torch.dtype
    tile_rows: int
    width_in: int
    """Width summed over in a row product; left width of a weight gradient."""

    width_out: int

    @property
    def key(self) -> str:
        """Return the name in the file."""
        dtype = str(self.dtype).removeprefix("torch.")
        widths = f"{self.width_in}x{self.width_out}"
        return f"{self.kernel}/{self.epilogue}/{dtype}/{self.tile_rows}/{widths}"


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Hold the block sizes of one launch.

    A row product computes (tile_rows, ``columns``) in steps of ``depth`` of the inner width; a
    weight gradient (``rows``, ``columns``) in steps of ``depth`` rows.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


STAGES = {"row_product": (2, 3, 4), "weight_gradient": (3, 5, 7)}
"""Depths of software pipelines to compare, the default in the middle.

A weight gradient loads the numbers of rows before the rows, and so holds a pair of blocks for every
two stages.
"""

DEPTHS = {"row_product": (32, 64, 128), "weight_gradient": (32, 64)}
"""Steps of the inner sum to compare."""

_MAX_WIDTH = {torch.float32: 64}
"""Float32 products without TF32 run in ordinary arithmetic, in registers: smaller blocks."""

MAX_SHARED_MEMORY = 227 * 1024
"""What the best-equipped GPU has for one block, in bytes; what does not fit others is skipped."""


def default_blocks(shape: ShapeClass) -> Blocks:
    """Return block sizes that fit every GPU served."""
    widest = _MAX_WIDTH.get(shape.dtype, 128)
    depth = 32 if shape.dtype == torch.float32 else 64
    columns = _block(shape.width_out, widest)
    if shape.kernel == "weight_gradient":
        rows = _block(shape.width_in, widest)
        depth = min(depth, max(16, shape.tile_rows))
    else:
        rows = shape.tile_rows
        depth = _block(shape.width_in, depth)
    num_warps = 8 if rows * columns >= 128 * 128 else 4
    num_stages = STAGES[shape.kernel][1]
    return Blocks(rows, columns, depth, num_warps, num_stages)


def candidate_blocks(shape: ShapeClass) -> list[Blocks]:
    """Return the block sizes that a search compares, the default first."""
    default = default_blocks(shape)
    grid = itertools.product(
        sorted({default.columns, _block(shape.width_out, 64), _block(shape.width_out, 256)}),
        sorted({default.depth, *DEPTHS[shape.kernel]}),
        (4, 8),
        STAGES[shape.kernel],
    )
    found = (Blocks(default.rows, *sizes) for sizes in grid)
    sensible = [blocks for blocks in found if blocks != default and _is_sensible(blocks, shape)]
    return [default, *sensible]


def _is_sensible(blocks: Blocks, shape: ShapeClass) -> bool:
    is_product = shape.kernel == "row_product"
    pairs = blocks.num_stages if is_product else (blocks.num_stages + 1) // 2
    element_bytes = torch.finfo(shape.dtype).bits // 8
    shared_memory = pairs * blocks.depth * (blocks.rows + blocks.columns) * element_bytes
    sums_per_thread = blocks.rows * blocks.columns // (32 * blocks.num_warps)
    fits_width = not is_product or blocks.depth <= _block(shape.width_in, 128)
    return shared_memory <= MAX_SHARED_MEMORY and 8 <= sums_per_thread <= 128 and fits_width


def _block(width: int, widest: int) -> int:
    return min(widest, max(16, triton.next_power_of_2(width)))


class Tuner:
    """Choose block sizes: from the file of this GPU, or by a search, or the defaults."""

    def __init__(self) -> None:
        self.is_searching = False
        self.found: dict[str, dict[str, Blocks]] = {}  # by file name, then by class

    def choose(
        self, shape: ShapeClass, device: torch.device, launch: Callable[[Blocks], object]
    ) -> Blocks:
        """Return the block sizes for a shape class; ``launch`` runs the kernel with some."""
        if device.type != "cuda":
            return default_blocks(shape)
        name = _file_name(device.index)
        if name not in self.found:
            self.found[name] = _read(cache_directory() / name)
        known = self.found[name].get(shape.key)
        if known is not None:
            return known
        if not self.is_searching or torch.cuda.is_current_stream_capturing():
            return default_blocks(shape)
        best = _search(shape, launch)
        self.found[name][shape.key] = best
        _write(cache_directory() / name, self.found[name])
        return best

    @contextlib.contextmanager
    def searching(self) -> Iterator[None]:
        """Search for the best block sizes of every shape class met that is not in the file."""
        before, self.is_searching = self.is_searching, True
        try:
            yield
        finally:
            self.is_searching = before


# Backward runs in a thread of autograd's, which context variables would not reach.
TUNER = Tuner()


def warmup(step: Callable[[], object], *, search: bool = True) -> None:
    """Run a step so that every kernel that it needs is compiled, and tuned where not yet done.

    ``step`` is called once: a forward and backward pass at the sizes to come, without
    ``torch.compile``. With ``search`` false, or on a CPU, nothing is compared. Call it before a
    CUDA graph is captured, as kernels cannot be compiled during a capture.
    """
    with TUNER.searching() if search else contextlib.nullcontext():
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cache_directory() -> Path:
    """Return the folder that search results are kept in."""
    return Path(os.environ.get("MOEUT_CACHE") or Path.home() / ".cache" / "moeut")


@functools.cache
def _file_name(index: int | None) -> str:
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name(index)).lower()
    return f"blocks-{gpu}-triton-{triton.__version__}.json"


def _search(shape: ShapeClass, launch: Callable[[Blocks], object]) -> Blocks:
    times: dict[Blocks, float] = {}
    for blocks in candidate_blocks(shape):
        try:
            times[blocks] = _time(launch, blocks)
        except triton.runtime.errors.OutOfResources:
            continue  # this GPU has less shared memory than others
    best = min(times, key=times.__getitem__)
    default = times.get(default_blocks(shape), float("inf"))
    logger.info(
        "%s: %s, %.3f ms; default %.3f ms; %d compared",
        *(shape.key, best, times[best], default, len(times)),
    )
    return best


def _time(launch: Callable[[Blocks], object], blocks: Blocks) -> float:
    launch(blocks)  # compiles
    samples = []
    for _ in range(SEARCH_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launch(blocks)
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end))
    return statistics.median(samples)


def _read(path: Path) -> dict[str, Blocks]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        return {key: Blocks(**fields) for key, fields in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("%s: not readable as block sizes (%s); the defaults serve", path, error)
        return {}


def _write(path: Path, found: dict[str, Blocks]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: dataclasses.asdict(blocks) for key, blocks in sorted(found.items())}
    # Renamed into place, so that another process never reads half a file.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, path)
