"""Time the expert operations beside what they could be replaced by.

For every size: `ours`, the expert operation of the chosen backend; `dense`, the floor, a dense
layer of the same active width, which does as many multiplications and no routing, by PyTorch's
linear layer and, where the backend multiplies by oneDNN, by oneDNN too; `loop`, a plain loop over
the experts differentiated by autograd; `all experts`, every expert computed for every token and
masked. Sorting the routing decision is part of the time, the router is not.

On a GPU there are also `ours, sorted before`, without the time to sort; PyTorch's grouped product
where it takes the shape; and peers given with --peer. Every time stands beside the roofline: the
least that the same device needs, at the rates that a large product and a large copy reach in the
same run, for the operations or for moving everything once, whichever takes longer.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from moeut.ops import resolve_backend
from moeut.ops.matmul import onednn_is_faster
from moeut.ops.triton_device import has_triton
from runners.bench.command import check_counts, deliver
from runners.bench.competitors import candidates_for
from runners.bench.limits import Limits, measure_limits
from runners.bench.peers import load_peer
from runners.bench.sizes import (
    CPU_SIZES,
    DTYPES,
    GPU_SIZES,
    QUICK_SIZES,
    SIZES,
    HeadSize,
    MlpSize,
    backward_bytes,
    check_sizes,
    forward_bytes,
)
from runners.bench.timing import (
    Candidate,
    Timing,
    compare,
    describe_machine,
    peak_memory,
    retain_memory,
)

SLOW = ("loop", "all experts")
"""Competitors that get fewer rounds, and none on a GPU, where they wait for the device."""


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Time every chosen size and return the result with what it depends on."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    retained = options.retain_memory and retain_memory()
    mixed = options.dtype == "autocast"
    compute_dtype = torch.bfloat16 if mixed else DTYPES[options.dtype]
    dtype = torch.float32 if mixed else compute_dtype
    limits = measure_limits(device, compute_dtype, quick=options.quick)
    peers = [load_peer(text) for text in options.peer]
    skip = {*options.skip, *(SLOW if mixed or device.type == "cuda" else ())}
    rows: list[dict[str, object]] = []
    failures: dict[str, str] = {}
    for name in options.sizes:
        size = SIZES[name]
        candidates = candidates_for(size, options.backend, device, dtype, peers)
        candidates = {key: value for key, value in candidates.items() if key not in skip}
        if mixed:
            candidates.pop("dense, oneDNN", None)  # float32 alone
            candidates = {key: _autocast(value, device) for key, value in candidates.items()}
        for peer in [one.name for one in peers if one.name in candidates]:
            problem = _try(candidates[peer])
            if problem is not None:
                failures[f"{name}, {peer}"] = problem
                del candidates[peer]
        _warm_up(candidates["ours"], options, device)
        # Ours, its floor and peers are timed in the same rounds.
        slow = {key: candidates.pop(key) for key in SLOW if key in candidates}
        timings = compare(candidates, rounds=options.repeats, warmup=min(3, options.repeats))
        timings |= compare(slow, rounds=min(3, options.repeats), warmup=1)
        for key, timing in timings.items():
            row = _row(name, size, key, timing, timings["dense"])
            row |= _roofline(size, timing, limits, compute_dtype)
            rows.append(row | {"peak_memory_bytes": peak_memory({**candidates, **slow}[key])})
    return {
        "benchmark": "experts",
        "command": shlex.join(["python", "-m", "runners.bench", *options.command]),
        "backend": resolve_backend(options.backend, device.type, compute_dtype),
        "dtype": options.dtype,
        "float32_onednn": device.type == "cpu" and onednn_is_faster(),
        "retained_memory": retained,
        "repeats": options.repeats,
        "tuned": options.tune,
        "machine": describe_machine(device),
        "limits": dataclasses.asdict(limits),
        "sizes": {name: dataclasses.asdict(SIZES[name]) for name in options.sizes},
        "failures": failures,
        "rows": rows,
    }


def _autocast(candidate: Candidate, device: torch.device) -> Candidate:
    """Compute a candidate's forward pass in bfloat16, from float32 tensors."""

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return candidate.forward()

    return dataclasses.replace(candidate, forward=forward)


def _try(candidate: Candidate) -> str | None:
    """Return what a peer says to the size; None where it takes it."""
    try:
        out = candidate.forward()
        out.backward(torch.ones_like(out))
    except (RuntimeError, ValueError, AssertionError, TypeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _warm_up(candidate: Candidate, options: argparse.Namespace, device: torch.device) -> None:
    """Compile our kernels, and search for their block sizes where asked."""

    def step() -> None:
        out = candidate.forward()
        out.backward(torch.ones_like(out))

    if device.type == "cuda" and has_triton():
        from moeut.ops.triton_tuning import warmup

        warmup(step, search=options.tune)


def _roofline(
    size: MlpSize | HeadSize, timing: Timing, limits: Limits, dtype: torch.dtype
) -> dict[str, object]:
    forward = limits.milliseconds(size.forward_flop, forward_bytes(size, dtype.itemsize))
    backward = limits.milliseconds(2 * size.forward_flop, backward_bytes(size, dtype.itemsize))
    both = forward + backward
    return {
        "roofline_forward_ms": round(forward, 4),
        "roofline_forward_backward_ms": round(both, 4),
        "roofline_forward_fraction": round(forward / timing.forward_ms, 4),
        "roofline_forward_backward_fraction": round(both / timing.forward_backward_ms, 4),
    }


def _row(
    name: str, size: MlpSize | HeadSize, candidate: str, timing: Timing, floor: Timing
) -> dict[str, object]:
    routed_flop = size.forward_flop  # the useful work; computing all experts does more
    return {
        "size": name,
        "candidate": candidate,
        **{key: round(value, 4) for key, value in dataclasses.asdict(timing).items()},
        "forward_ratio": round(timing.forward_ms / floor.forward_ms, 4),
        "forward_backward_ratio": round(timing.forward_backward_ms / floor.forward_backward_ms, 4),
        "forward_backward_min_ratio": round(
            timing.forward_backward_min_ms / floor.forward_backward_min_ms, 4
        ),
        "gflop_per_second": round(3 * routed_flop / timing.forward_backward_ms / 1e6, 2),
    }


def print_table(result: dict, console: Console) -> None:
    """Print one line for every size and competitor."""
    machine = result["machine"]
    console.print(
        f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} CPU thread(s), torch "
        f"{machine['torch']}, {result['dtype']}, backend {result['backend']}, load average "
        f"{machine['load_average']}"
    )
    table = Table(title="forward (f) and forward + backward (f+b), medians; × = ratio to dense")
    headings = ("size", "what", "f ms", "f+b ms", "f ×", "f+b ×", "min f+b ×", "GFLOP/s")
    for heading in (*headings, "roofline f+b ms", "%", "peak MiB"):
        table.add_column(heading, justify="left" if heading in ("size", "what") else "right")
    previous = None
    for row in result["rows"]:
        if previous not in (None, row["size"]):
            table.add_section()
        table.add_row(
            "" if row["size"] == previous else row["size"],
            row["candidate"],
            f"{row['forward_ms']:.2f}",
            f"{row['forward_backward_ms']:.2f}",
            f"{row['forward_ratio']:.2f}",
            f"{row['forward_backward_ratio']:.2f}",
            f"{row['forward_backward_min_ratio']:.2f}",
            f"{row['gflop_per_second']:.1f}",
            f"{row['roofline_forward_backward_ms']:.3f}",
            f"{100 * row['roofline_forward_backward_fraction']:.0f}",
            "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.0f}",
        )
        previous = row["size"]
    console.print(table)
    for where, problem in result["failures"].items():
        console.print(f"{where}: left out, {problem}", markup=False)


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result."""
    check_sizes(options.sizes)
    check_counts(options, "threads", "repeats")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: no CUDA device is available")
    resolve_backend(options.backend, options.device)
    result = measure(options)
    deliver(result, options, print_table)
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="expert matmuls beside a dense layer, a loop and all experts masked",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=None, help=f"some of {', '.join(SIZES)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads within an operation")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds; medians are shown")
    parser.add_argument("--backend", default="auto", help="auto, grouped, triton or reference")
    parser.add_argument(
        "--dtype",
        choices=(*DTYPES, "autocast"),
        default=None,
        help="of every tensor; autocast: bfloat16 from float32 tensors, the default on a GPU",
    )
    parser.add_argument("--device", default=None, help="cpu or cuda (timed by events)")
    parser.add_argument("--skip", nargs="*", default=[], choices=SLOW, help="leave these out")
    parser.add_argument(
        *("--peer", "-p"),
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also time a kernel or adapter file; may be repeated (see runners/bench/peers.py)",
    )
    parser.add_argument(
        "--tune", action="store_true", help="search for block sizes first, and keep them on disk"
    )
    parser.add_argument(
        "--retain-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let malloc keep freed buffers, for every competitor alike",
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write here")
    parser.set_defaults(run=_run_with_defaults)


def _run_with_defaults(options: argparse.Namespace) -> int:
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = torch.device(options.device).type == "cuda"
    if options.dtype is None:
        options.dtype = "autocast" if on_gpu else "float32"
    if options.sizes is None:
        options.sizes = list(QUICK_SIZES if options.quick else GPU_SIZES if on_gpu else CPU_SIZES)
    if options.quick:
        options.repeats = min(options.repeats, 3)
    return run(options)
