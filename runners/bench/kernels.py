"""Compile the Triton kernels ahead of time, without a GPU, and show what they take of one.

For every kernel that a use launches, at a size and for a compute capability: registers and spills
of a thread, shared memory of a block, warps, tensor-core instructions, and the bytes that one
asynchronous copy brings from device memory (16 is best). From these, how many blocks share a
multiprocessor, and what limits them.
"""

from __future__ import annotations

import argparse
from typing import Any

from moeut.ops.backend import has_triton, is_interpreted
from runners.bench.command import add_json_option, command_line, deliver
from runners.bench.layers import DTYPES, SIZES, HeadSize, MlpSize, check_sizes
from runners.bench.machine_code import SHARED_KIB, compile_launch, record_launches
from runners.reporting.tables import Table
from tasks.base.options import nearest

DEFAULT_SIZES = (
    *("mlp-44m-64k", "value-44m-64k", "output-44m-64k"),
    *("mlp-244m-64k", "value-244m-64k", "output-244m-64k"),
)
KERNEL_SIZES = [name for name, size in SIZES.items() if isinstance(size, MlpSize | HeadSize)]

NUMBERS = ("rows", "columns", "depth", "num_warps", "num_stages", "span")
SWITCHES = ("descriptor", "persistent")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compile every kernel of the chosen sizes and return what their machine code says."""
    import triton

    rows = []
    for name in options.sizes:
        size = SIZES[name]
        assert isinstance(size, MlpSize | HeadSize)
        for capability in options.capability:
            launches = record_launches(size, DTYPES[options.dtype], capability, options.blocks)
            rows += [{"size": name, **compile_launch(one, capability)} for one in launches]
    return {
        "benchmark": "kernels",
        "command": command_line(options),
        "dtype": options.dtype,
        "blocks": options.blocks,
        "triton": triton.__version__,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> Table:
    """Return a line for every kernel."""
    columns = (
        *("size", "kernel", "sm", "tile", "warps", "registers", "stack", "KiB", "instructions"),
        *("copies", "blocks", "limit"),
    )
    rows = [
        [
            *(row["size"], row["kernel"], str(row["capability"]), _tile(row["constants"])),
            *(str(row.get("num_warps", 4)), str(row["registers"]), str(row["stack_bytes"])),
            f"{row['shared_bytes'] / 1024:.0f}",
            f"{row['wgmma']} wgmma" if row["wgmma"] else f"{row['mma']} mma",
            ", ".join(f"{width} × {count}" for width, count in row["async_load_bytes"].items()),
            *(str(row["blocks_per_multiprocessor"]), row["limited_by"]),
        ]
        for row in result["rows"]
    ]
    title = (
        "registers and stack bytes of a thread, KiB of shared memory of a block, bytes × count of "
        "asynchronous copies, blocks of a multiprocessor"
    )
    return Table(name="kernels", title=title, columns=list(columns), rows=rows, num_names=2)


def _tile(constants: dict[str, Any]) -> str:
    return "×".join(str(value) for name, value in constants.items() if name.startswith("BLOCK_"))


def run(options: argparse.Namespace) -> int:
    """Compile, print and, where asked, write the result.

    Raises:
        ValueError: an unknown size or capability, or Triton cannot compile here.
    """
    check_sizes(options.sizes, KERNEL_SIZES)
    unknown = [one for one in options.capability if one // 10 * 10 not in SHARED_KIB]
    if unknown:
        raise ValueError(
            f"--capability {unknown[0]}: expected one of {', '.join(map(str, SHARED_KIB))}"
        )
    if not has_triton():
        raise ValueError("Triton is not installed")
    if is_interpreted():
        raise ValueError("TRITON_INTERPRET=1: the interpreter compiles nothing; unset it")
    result = measure(options)
    heading = f"compiled kernels, {result['dtype']}, Triton {result['triton']}"
    deliver(result, options, heading, [table(result)], width=200)
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
        help=f"changes to the block sizes of row products: {', '.join(NUMBERS)}, and "
        f"{' or '.join(SWITCHES)} as 0 or 1; as columns=256,descriptor=1",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def _blocks(text: str) -> dict[str, Any]:
    """Return the changes that ``--blocks`` asks for."""
    names = (*NUMBERS, *SWITCHES)
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in names or not number.isdecimal():
            raise argparse.ArgumentTypeError(
                f"{part!r}: expected a number for one of {', '.join(names)}{nearest(name, names)}"
            )
        changes[name] = bool(int(number)) if name in SWITCHES else int(number)
    return changes
