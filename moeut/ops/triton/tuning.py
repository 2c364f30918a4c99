"""Block sizes of the Triton kernels: defaults, and a search whose results are kept on disk.

A kernel's block sizes depend on its *shape class*: kernel, dtype, widths and rows of a tile. The
number of tokens enters only by the rows of a tile, which take five values, so that another batch
size never starts a search. A search runs only when asked for; without a result on disk the defaults
serve. ``warmup`` searches:

    warmup(lambda: model(tokens).logits.sum().backward())

Block sizes decide in which order numbers are summed, so runs on one machine repeat bit by bit as
long as no search comes between them.

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from moeut.files import write_atomically

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

    A row product computes (``rows``, ``columns``) in steps of ``depth`` of the inner width, with
    ``rows`` a part of a tile; a weight gradient (``rows``, ``columns``) in steps of ``depth`` rows.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    descriptor: bool = False
    """Whether the tensor-memory accelerator copies the weights of a row product (Hopper on)."""
    persistent: bool = False
    """Whether as many programs as the GPU holds at once work through all tiles of a row product."""
    span: int = 1
    """Blocks of columns that one program of a row product computes, one after the other. Rows no
    wider than ``depth`` are loaded once for all of them."""


STAGES = {"row_product": (2, 3, 4), "weight_gradient": (3, 5, 7)}
"""Depths of software pipelines to compare, the default in the middle.

A weight gradient loads the numbers of rows before the rows, and so holds a pair of blocks for every
two stages.
"""

DEPTHS = {"row_product": (32, 64, 128), "weight_gradient": (32, 64)}
"""Steps of the inner sum to compare."""

_MAX_WIDTH = {torch.float32: 64}
"""Float32 products without TF32 run in ordinary arithmetic, in registers: smaller blocks."""

MAX_SPAN = 16
"""Most blocks of columns of one program."""

MAX_SHARED_MEMORY = 227 * 1024
"""What the best-equipped GPU has for one block, in bytes; what does not fit others is skipped."""


def default_blocks(shape: ShapeClass) -> Blocks:
    """Return block sizes that fit every GPU served.

    Products of narrow rows (an expert's width) give wide ones (the model's), and move more bytes
    than any other for what they compute: there a program goes through many columns, so that it
    loads its rows once. By a count of bytes (``runners.bench kernels``) that is a third less.
    """
    widest = _MAX_WIDTH.get(shape.dtype, 128)
    depth = 32 if shape.dtype == torch.float32 else 64
    columns, span = _block(shape.width_out, widest), 1
    if shape.kernel == "weight_gradient":
        rows = _block(shape.width_in, widest)
        depth = min(depth, max(16, shape.tile_rows))
    else:
        # More rows would leave no registers to gathered addresses, or to what follows a product.
        is_plain = shape.epilogue.startswith("linear") and is_narrow(shape)
        rows = min(shape.tile_rows, 256 if is_plain else 128)
        if is_narrow(shape):
            columns, depth, span = 64, _block(shape.width_in, 128), MAX_SPAN
        depth = _block(shape.width_in, depth)
    num_warps = 8 if rows * columns >= 128 * 128 or (span > 1 and rows >= 128) else 4
    return Blocks(rows, columns, depth, num_warps, STAGES[shape.kernel][1], span=span)


def is_narrow(shape: ShapeClass) -> bool:
    """Return whether the rows of a product fit in a step, and give rows of several blocks."""
    return shape.dtype != torch.float32 and shape.width_in <= 128 < shape.width_out


def search_rounds(
    shape: ShapeClass, capability: tuple[int, int] = (8, 0)
) -> Iterator[list[dict[str, Any]]]:
    """Yield what a search on a GPU of a compute capability compares, round by round.

    Each round is a list of changes to the best of the rounds before, which a search begins with
    the default: that is some twenty configurations in place of all their combinations.
    """
    default = default_blocks(shape)
    widths = sorted({default.columns, _block(shape.width_out, 64), _block(shape.width_out, 256)})
    depths = sorted({default.depth, *DEPTHS[shape.kernel]})
    if shape.kernel == "weight_gradient":
        heights = sorted({default.rows, _block(shape.width_in, 256)})
        yield _changes(rows=heights, columns=widths, num_warps=(4, 8))
        yield _changes(depth=depths, num_stages=STAGES[shape.kernel])
        return
    # Descriptors first: they take fewer registers, which larger blocks need.
    descriptor = (False, True) if takes_descriptor(shape, capability) else (False,)
    yield _changes(descriptor=descriptor, persistent=(False, True))
    heights = sorted({min(shape.tile_rows, 128), shape.tile_rows})
    yield _changes(rows=heights, columns=widths, num_warps=(4, 8))
    if is_narrow(shape):
        yield _changes(span=(1, 4, MAX_SPAN), num_stages=STAGES[shape.kernel])
    else:
        yield _changes(depth=depths, num_stages=STAGES[shape.kernel])


def _changes(**values: Iterable[object]) -> list[dict[str, Any]]:
    combinations = itertools.product(*values.values())
    return [dict(zip(values, combination, strict=True)) for combination in combinations]


def takes_descriptor(shape: ShapeClass, capability: tuple[int, int]) -> bool:
    """Return whether the tensor-memory accelerator can copy a row product's weights.

    It is Hopper's, and wants rows that are multiples of 16 bytes: of either width, as the weights
    may be transposed.
    """
    elements = 128 // torch.finfo(shape.dtype).bits
    is_aligned = shape.width_in % elements == 0 and shape.width_out % elements == 0
    return capability >= (9, 0) and is_aligned


def is_sensible(blocks: Blocks, shape: ShapeClass) -> bool:
    """Return whether blocks fit the shape, shared memory and registers."""
    is_product = shape.kernel == "row_product"
    stages = blocks.num_stages if is_product else (blocks.num_stages + 1) // 2
    # Rows that are loaded once for many blocks of columns take no part in the pipeline.
    staged, once = (
        (blocks.columns, blocks.rows) if blocks.span > 1 else (blocks.rows + blocks.columns, 0)
    )
    element_bytes = torch.finfo(shape.dtype).bits // 8
    shared_memory = blocks.depth * (stages * staged + once) * element_bytes
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
            folder = cache_directory()
            self.found[name] = {} if folder is None else _read(folder / name)
        known = self.found[name].get(shape.key)
        if known is not None:
            return known
        if not self.is_searching or torch.cuda.is_current_stream_capturing():
            return default_blocks(shape)
        best = _search(shape, launch, torch.cuda.get_device_capability(device))
        self.found[name][shape.key] = best
        if (folder := cache_directory()) is not None:
            _write(folder / name, self.found[name])
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


def cache_directory() -> Path | None:
    """Return the folder that search results are kept in; None without ``MOEUT_CACHE`` and home."""
    given = os.environ.get("MOEUT_CACHE")
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache" / "moeut"
    except RuntimeError:
        return None


@functools.cache
def _file_name(index: int | None) -> str:
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name(index)).lower()
    return f"blocks-{gpu}-triton-{triton.__version__}.json"


def _search(
    shape: ShapeClass, launch: Callable[[Blocks], object], capability: tuple[int, int]
) -> Blocks:
    best = default = default_blocks(shape)
    times: dict[Blocks, float] = {}
    rounds: list[list[dict[str, Any]]] = [[{}], *search_rounds(shape, capability)]
    for changes in rounds:
        for blocks in (dataclasses.replace(best, **change) for change in changes):
            if blocks in times or not (blocks == default or is_sensible(blocks, shape)):
                continue
            try:
                times[blocks] = _time(launch, blocks)
            except triton.runtime.errors.OutOfResources:
                continue  # this GPU has less shared memory than others
        best = min(times, key=times.__getitem__)
    logger.info(
        "%s: %s, %.3f ms; default %.3f ms; %d compared",
        *(shape.key, best, times[best], times.get(default, float("inf")), len(times)),
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
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: Blocks(**fields) for key, fields in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("%s: not readable as block sizes (%s); the defaults serve", path, error)
        return {}


def _write(path: Path, found: dict[str, Blocks]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: dataclasses.asdict(blocks) for key, blocks in sorted(found.items())}
    write_atomically(path, json.dumps(content, indent=1))  # another process may be reading
