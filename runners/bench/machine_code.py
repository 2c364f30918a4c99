"""Compile the Triton kernels ahead of time, without a GPU, and read their machine code.

The launches of an operation are recorded on tensors of a few rows, in place of being run; each is
compiled as Triton would for a GPU of a compute capability.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from runners.bench.layers import HeadSize, MlpSize

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
    from moeut.ops.triton import dispatch, launch, operators, router
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
        stack.enter_context(mock.patch.object(launch.TUNER, "choose", choose))
        for module in (dispatch, launch, router):
            for name in KERNELS[module.__name__]:
                recorder = _Recorder(getattr(module, name), launches)
                stack.enter_context(mock.patch.object(module, name, recorder))
        _call_router(size)
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


def _call_router(size: MlpSize | HeadSize) -> None:
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
    """Yield the operators that one token takes, and their arguments."""
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


def compile_launch(launch: Launch, capability: int) -> dict[str, Any]:
    """Compile one launch and return what its machine code says."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = _signature(launch)
    source = ASTSource(launch.kernel, signature, launch.constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    ptx = compiled.asm["ptx"]
    found = {
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
    return found | occupancy(
        capability,
        registers=found["registers"],
        shared_bytes=found["shared_bytes"],
        num_warps=launch.options.get("num_warps", 4),
    )


def _signature(launch: Launch) -> tuple[dict[str, str], dict[tuple[int], Any]]:
    """Return the types of a launch's arguments, and the alignment of their addresses."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    signature: dict[str, str] = {}
    attributes: dict[tuple[int], Any] = {}
    for position, name in enumerate(launch.kernel.arg_names):
        if name in launch.constants:
            signature[name] = "constexpr"
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
    return signature, attributes


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
        said = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
    return {
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]) + int(found["LOCAL"]),
    }


SHARED_KIB = {80: 164, 90: 228, 100: 228}
"""Shared memory of a multiprocessor by compute capability: A100, H100 and H200, B200."""

REGISTERS, MAX_WARPS, MAX_BLOCKS = 65536, 64, 32
"""What a multiprocessor of each of them has."""

REGISTER_UNIT = 256
"""Registers are given to a warp in multiples of this."""

RESERVED_SHARED_BYTES = 1024
"""Taken by the system in every block."""


def occupancy(
    capability: int, *, registers: int, shared_bytes: int, num_warps: int
) -> dict[str, Any]:
    """Return how many blocks a multiprocessor holds, and what limits them.

    ``registers`` are of a thread, ``shared_bytes`` and ``num_warps`` of a block.
    """
    per_warp = math.ceil(32 * registers / REGISTER_UNIT) * REGISTER_UNIT
    shared = SHARED_KIB[capability // 10 * 10] * 1024
    limits = {
        "registers": REGISTERS // (per_warp * num_warps),
        "shared memory": shared // (shared_bytes + RESERVED_SHARED_BYTES),
        "warps": MAX_WARPS // num_warps,
        "blocks": MAX_BLOCKS,
    }
    limit, blocks = min(limits.items(), key=lambda item: item[1])
    return {"blocks_per_multiprocessor": blocks, "limited_by": limit}
