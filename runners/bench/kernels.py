"""Compile the Triton kernels ahead of time, without a GPU, and read the machine code.

For every kernel that a use launches, at a size and for a compute capability: registers and spills
of a thread, shared memory of a block, warps, tensor-core instructions, and the bytes that one
asynchronous copy brings from device memory (16 is best). From these, how many blocks share a
multiprocessor and what limits them; and for the products, the bytes of a
tile, the operations for each, the rounds of tiles (`waves`), the share of work on rows that are not
there (`waste`), and whether tensor cores or the cache would be busy for longer on an A100 or H200.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console

from moeut.ops.triton.device import has_triton, is_interpreted
from runners.bench.command import Section, deliver, ditto
from runners.bench.estimates import DEVICES, estimate
from runners.bench.sizes import DTYPES, SIZES, HeadSize, MlpSize, check_sizes
from tasks.base.options import nearest

DEFAULT_SIZES = (
    *("mlp-44m-64k", "value-44m-64k", "output-44m-64k"),
    *("mlp-244m-64k", "value-244m-64k", "output-244m-64k"),
)
KERNEL_SIZES = [name for name, size in SIZES.items() if isinstance(size, MlpSize | HeadSize)]
TYPE_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}
KERNELS = {
    "moeut.ops.triton.dispatch": ("count_kernel", "scan_kernel", "offset_kernel", "place_kernel"),
    "moeut.ops.triton.launch": ("row_product_kernel", "row_sum_kernel", "weight_gradient_kernel"),
    "moeut.ops.triton.router": ("route_kernel", "route_gradient_kernel"),
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """Hold one launch of a kernel: its arguments by name and its constants and options."""

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the kernel's name, and its epilogue where it has one."""
        name = self.kernel.__name__.removesuffix("_kernel")
        epilogue = self.constants.get("EPILOGUE")
        return f"{name}, {epilogue}" if epilogue else name


class _Recorder:
    """Stand in for a kernel and keep its launches instead of running them."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._launch

    def _launch(self, *positional: Any, **keywords: Any) -> None:
        names = ("num_warps", "num_stages")
        options: dict[str, Any] = {name: keywords.pop(name) for name in names if name in keywords}
        arguments = dict(zip(self.kernel.arg_names, positional, strict=False)) | keywords
        constants = {
            parameter.name: arguments.pop(parameter.name)
            for parameter in self.kernel.params
            if parameter.is_constexpr
        }
        self.launches.append(Launch(self.kernel, arguments, constants, options))


def record_launches(
    size: MlpSize | HeadSize,
    dtype: torch.dtype,
    capability: int,
    changes: dict[str, Any] | None = None,
) -> list[Launch]:
    """Return what forward and backward of a use launch at its widths, on a few rows.

    ``changes`` replace some of the default block sizes of row products.
    """
    from moeut.ops.triton import dispatch, operators, router
    from moeut.ops.triton import launch as triton_launch
    from moeut.ops.triton.tuning import default_blocks

    def choose(shape: Any, device: torch.device, launch: Any) -> Any:
        blocks = default_blocks(shape)
        is_product = shape.kernel == "row_product"
        return dataclasses.replace(blocks, **changes or {}) if is_product else blocks

    launches: list[Launch] = []
    tile_rows = dispatch.choose_tile_rows(
        size.num_slots, size.total_experts, divmod(capability, 10)
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton_launch.TUNER, "choose", choose))
        for module in (dispatch, triton_launch, router):
            for name in KERNELS[module.__name__]:
                recorder = _Recorder(getattr(module, name), launches)
                stack.enter_context(mock.patch.object(module, name, recorder))
        _record_router(size)
        slots = torch.zeros(size.slots_per_token, dtype=torch.int64)
        dispatch.dispatch._init_fn(slots, size.total_experts, tile_rows)
        empty = torch.empty(2, 2, dtype=torch.int64)
        offsets = torch.zeros(size.total_experts + 1, dtype=torch.int64)
        routing = (slots, offsets, empty, tile_rows)
        gate = torch.zeros(size.slots_per_token, dtype=dtype)
        for name, arguments in _calls(size, routing, gate, dtype):
            getattr(operators, name)._init_fn(*arguments)
    unique = {(one.name, *sorted(map(str, one.constants.items()))): one for one in launches}
    return list(unique.values())


def _record_router(size: MlpSize | HeadSize) -> None:
    from moeut.ops.triton import router

    if isinstance(size, MlpSize):
        routers, experts = 1, size.num_experts
    else:  # value and output experts of all heads are chosen in one go
        routers, experts = 2 * size.num_heads, size.experts_per_head
    logits = torch.zeros(1, 1, routers, experts)
    gates, probability, normaliser, selection = router.route._init_fn(
        logits, None, None, None, size.top_k, False, True
    )
    router.route_backward._init_fn(
        gates, probability, logits, normaliser, selection, gates, None, False, True
    )


def _calls(
    size: MlpSize | HeadSize, routing: tuple[Any, ...], gate: torch.Tensor, dtype: torch.dtype
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    width = size.width
    if isinstance(size, MlpSize):
        x = torch.zeros(1, width, dtype=dtype)
        # Never written, so that they take no memory.
        up = torch.empty(size.num_experts, width, size.expert_size, dtype=dtype)
        weights = (up, torch.empty(size.num_experts, size.expert_size, width, dtype=dtype))
        yield "_mlp", (x, *weights, *routing, gate, True)
        hidden = torch.zeros(size.slots_per_token, size.expert_size, dtype=dtype)
        yield "_mlp_backward", (x, x, *weights, *routing, gate, hidden, [True] * 4)
        return
    heads, top_k = size.num_heads, size.top_k
    is_value = size.kind == "value"
    one, many = torch.zeros(1, width, dtype=dtype), torch.zeros(heads, size.head_width, dtype=dtype)
    x, out = (one, many) if is_value else (many, one)
    weight = torch.empty(size.total_experts, x.shape[1], out.shape[1], dtype=dtype)
    slots = (heads * top_k, top_k) if is_value else (top_k, heads * top_k)
    yield "_linear", (x, weight, *routing, gate, *slots)
    yield "_linear_backward", (out, x, weight, *routing, gate, *slots, [True] * 3)


def compile_launch(launch: Launch, capability: int) -> dict[str, object]:
    """Compile one launch and return what its machine code says."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.tools.tensor_descriptor import TensorDescriptor

    signature = dict.fromkeys(launch.constants, "constexpr")
    attributes = {}
    for position, name in enumerate(launch.kernel.arg_names):
        if name in launch.constants:
            continue
        value = launch.arguments[name]
        if isinstance(value, TensorDescriptor):
            block = ", ".join(map(str, value.block_shape))
            signature[name] = f"tensordesc<{TYPE_NAMES[value.base.dtype]}[{block}]>"
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPE_NAMES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]  # as PyTorch allocates
        else:
            signature[name] = "i32"
    signature = {name: signature[name] for name in launch.kernel.arg_names}
    source = ASTSource(launch.kernel, signature, launch.constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    ptx = compiled.asm["ptx"]
    return {
        "kernel": launch.name,
        "capability": capability,
        "constants": dict(launch.constants),
        **launch.options,
        "shared_bytes": compiled.metadata.shared,
        **_resources(compiled.asm["cubin"]),
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"mma\.sync", ptx)),
        **_loads(ptx),
    }


def _loads(ptx: str) -> dict[str, dict[str, int]]:
    """Return how many load instructions there are of each width, in bytes.

    Asynchronous copies to shared memory feed the products; others load gates, row numbers and what
    an epilogue needs.
    """
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x(\w+)", ptx)
    asynchronous = collections.Counter(int(width, 16) for width in copies)
    others = collections.Counter(
        int(vector or 1) * int(bits) // 8
        for vector, bits in re.findall(r"ld\.global(?:\.[a-z]\w*)*?(?:\.v(\d))?\.[bfsu](\d+)", ptx)
    )
    return {
        name: {str(width): count for width, count in sorted(counter.items())}
        for name, counter in (("async_load_bytes", asynchronous), ("load_bytes", others))
    }


def _resources(cubin: bytes) -> dict[str, int]:
    """Return the registers of a thread and the bytes of its stack, on which registers spill."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
    return {
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]) + int(found["LOCAL"]),
    }


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Compile every kernel of the chosen sizes and return what their machine code says."""
    import triton

    rows = []
    for name in options.sizes:
        size = SIZES[name]
        assert isinstance(size, MlpSize | HeadSize)
        for capability in options.capability:
            dtype = DTYPES[options.dtype]
            for launch in record_launches(size, dtype, capability, options.blocks):
                row = {"size": name, **compile_launch(launch, capability)}
                rows.append(row | estimate(row, size, DTYPES[options.dtype].itemsize))
    return {
        "benchmark": "kernels",
        "dtype": options.dtype,
        "blocks": options.blocks,
        "triton": triton.__version__,
        "rows": rows,
    }


def print_table(result: dict[str, Any], console: Console) -> None:
    """Print one line for every kernel."""
    headings = (
        *("size", "kernel", "sm", "tile", "warps", "registers", "stack", "KiB", "instructions"),
        *("copies", "blocks", "limit", "KiB/tile", "flop/B", "waves", "waste %"),
        *("compute ms", "cache ms", "bound"),
    )
    rows = [
        [
            *(row["size"], row["kernel"], str(row["capability"]), _tile(row["constants"])),
            *(str(row.get("num_warps", 4)), str(row["registers"]), str(row["stack_bytes"])),
            f"{row['shared_bytes'] / 1024:.0f}",
            f"{row['wgmma']} wgmma" if row["wgmma"] else f"{row['mma']} mma",
            ", ".join(f"{width} × {count}" for width, count in row["async_load_bytes"].items()),
            *(str(row["blocks_per_multiprocessor"]), row["limited_by"]),
            *_estimated(row),
        ]
        for row in result["rows"]
    ]
    title = (
        f"compiled kernels, {result['dtype']}, Triton {result['triton']}; registers and stack "
        "bytes of a thread, KiB of shared memory and blocks of a multiprocessor, bytes × count of "
        "asynchronous copies; compute and cache are estimates"
    )
    Section(title, headings, ditto(rows), num_names=2).show(console)


def _tile(constants: dict[str, Any]) -> str:
    names = [name for name in constants if name.startswith("BLOCK_")]
    return "×".join(str(constants[name]) for name in names)


def _estimated(row: dict[str, Any]) -> list[str]:
    if "tiles" not in row:
        return [""] * 7
    bound = ["", "", ""]
    if "bound_by" in row:
        bound = [f"{row['compute_ms']:.3f}", f"{row['cache_ms']:.3f}", row["bound_by"]]
    return [
        f"{row['bytes_per_tile'] / 1024:.0f}",
        f"{row['flop_per_byte']:.0f}",
        "" if row["waves"] is None else f"{row['waves']:.1f}",
        f"{100 * row['waste']:.0f}",
        *bound,
    ]


def run(options: argparse.Namespace) -> int:
    """Compile, print and, where asked, write the result."""
    check_sizes(options.sizes, KERNEL_SIZES)
    unknown = [one for one in options.capability if one // 10 * 10 not in DEVICES]
    if unknown:
        raise ValueError(
            f"--capability {unknown[0]}: expected one of {', '.join(map(str, DEVICES))}"
        )
    if not has_triton():
        raise ValueError("Triton is not installed")
    if is_interpreted():
        raise ValueError("TRITON_INTERPRET=1: the interpreter compiles nothing; unset it")
    result = measure(options)
    deliver(result, options, print_table, width=240)
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="compile the GPU kernels, without a GPU, and count registers, memory and loads",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--sizes", nargs="+", default=list(DEFAULT_SIZES), help=f"some of {', '.join(KERNEL_SIZES)}"
    )
    parser.add_argument("--capability", nargs="+", type=int, default=[80, 90], help="80, 90, 100")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of every tensor")
    parser.add_argument(
        "--blocks",
        type=_blocks,
        default={},
        metavar="NAME=NUMBER,…",
        help="changes to the block sizes of row products: rows, columns, depth, num_warps, "
        "num_stages, span, and descriptor or persistent as 0 or 1; as columns=256,descriptor=1",
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write here")
    parser.set_defaults(run=run)


def _blocks(text: str) -> dict[str, Any]:
    """Return the changes that ``--blocks`` asks for."""
    names = (
        "rows",
        "columns",
        "depth",
        "num_warps",
        "num_stages",
        "span",
        "descriptor",
        "persistent",
    )
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in names or not number.isdecimal():
            raise argparse.ArgumentTypeError(
                f"{part!r}: expected a number for one of {', '.join(names)}{nearest(name, names)}"
            )
        changes[name] = bool(int(number)) if name in names[-2:] else int(number)
    return changes
