"""Time the expert operations beside what they could be replaced by.

For every size: `ours`, the expert operation of the chosen backend; `dense`, the floor, a dense
layer of the same active width, which does as many multiplications and no routing, by PyTorch's
linear layer and, where the backend multiplies by oneDNN, by oneDNN too; `loop`, a plain loop over
the experts differentiated by autograd; `all experts`, every expert computed for every token and
masked. Sorting the routing decision is part of the time, the router is not: both have sizes of
their own, `dispatch-…` beside PyTorch's sort and `router-…` beside plain PyTorch and beside the
logits alone.

On a GPU there are also `ours, sorted before`, without the time to sort; `ours, shared`, one of
many applications of a layer, which cast their float32 weights once for all; PyTorch's grouped
product where it takes the shape; and peers given with --peer, which are left out where they fail or
compute something else. Every time stands beside the
roofline: the least that the same device needs, at the rates that a large product and a large copy
reach in the same run, for the operations or for moving everything once, whichever takes longer.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from typing import Any

import torch

from moeut.ops import resolve_backend
from moeut.ops.backend import has_triton
from moeut.ops.products import onednn_is_faster
from runners.bench.command import (
    add_device_options,
    add_peer_option,
    add_result_options,
    add_tune_option,
    check_counts,
    choose_device,
    command_line,
    deliver,
)
from runners.bench.competitors import candidates_for
from runners.bench.layers import (
    CPU_SIZES,
    DTYPES,
    GPU_SIZES,
    QUICK_SIZES,
    SIZES,
    DispatchSize,
    RouterSize,
    Size,
    backward_bytes,
    backward_flop,
    check_sizes,
    forward_bytes,
    unfused_bytes,
)
from runners.bench.limits import Limits, measure_limits
from runners.bench.peers import Peer, load_peers
from runners.bench.results import fresh_result, measure_sizes, notes_of, resumed, save
from runners.bench.timing import (
    Candidate,
    Timing,
    attempt,
    compare,
    describe_machine,
    peak_memory,
)
from runners.process.environment import retain_memory, set_float32_products
from runners.reporting.tables import Table

SLOW = ("loop", "all experts")
"""Competitors that get fewer rounds, and none on a GPU, where they wait for the device."""

NOT_THE_SAME = ("dense", "dense, oneDNN")
"""Competitors that compute something else on purpose."""

MAX_DIFFERENCE = 0.05
"""How far a peer's result may be from ours, as a share of the norm: bfloat16 gives 0.005."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every chosen size and return the result with what it depends on."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    if options.backend != "auto":
        os.environ["MOEUT_BACKEND"] = options.backend  # for the router, which takes no argument
    mixed = options.dtype == "autocast"
    dtype = torch.bfloat16 if mixed else DTYPES[options.dtype]
    set_float32_products(device, beside_bfloat16=dtype == torch.bfloat16)
    peers, unavailable = load_peers(options.peer)
    fresh = fresh_result(
        "experts",
        command_line(options),
        describe_machine(device),
        backend=resolve_backend(options.backend, device.type, dtype),
        dtype=options.dtype,
        float32_onednn=device.type == "cpu" and onednn_is_faster(),
        retained_memory=options.retain_memory and retain_memory(),
        repeats=options.repeats,
        tuned=options.tune,
        peers={peer.name: peer.kind for peer in peers},
        sizes={name: dataclasses.asdict(SIZES[name]) for name in options.sizes},
    )
    result = resumed(options, fresh, "backend", "dtype", "peers")
    result["failures"] |= unavailable
    limits = measure_limits(device, dtype, quick=options.quick)
    result["limits"] = dataclasses.asdict(limits)

    def measure_size(name: str) -> list[dict[str, Any]]:
        run = _SizeRun(name, options, device, dtype, peers, limits, result)
        rows, problem = attempt(run.measure, device)
        if problem is not None:
            result["failures"][name] = problem
        return rows or []

    measure_sizes(result, options, measure_size)
    return result


@dataclasses.dataclass(frozen=True)
class _SizeRun:
    """Measure one size."""

    name: str
    options: argparse.Namespace
    device: torch.device
    dtype: torch.dtype
    peers: list[Peer]
    limits: Limits
    result: dict[str, Any]

    @property
    def mixed(self) -> bool:
        """Return whether weights are float32 and activations bfloat16."""
        return self.options.dtype == "autocast"

    @property
    def weight_dtype(self) -> torch.dtype:
        """Return the dtype of weights and gates."""
        return torch.float32 if self.mixed else self.dtype

    def measure(self) -> list[dict[str, Any]]:
        """Return a row for every competitor that takes the size."""
        size, options = SIZES[self.name], self.options
        candidates = self._candidates()
        self._warm_up(candidates["ours"])
        candidates, differences = self._working(candidates)
        # Ours, its floor and peers are timed in the same rounds.
        slow = {key: candidates.pop(key) for key in SLOW if key in candidates}
        timings = compare(candidates, rounds=options.repeats, warmup=min(3, options.repeats))
        timings |= compare(slow, rounds=min(3, options.repeats), warmup=1)
        peaks = {key: peak_memory(one) for key, one in {**candidates, **slow}.items()}
        return [
            {
                **_row(self.name, size, key, timing, timings.get("dense")),
                **_roofline(size, timing, self.limits, self.dtype, self.weight_dtype),
                "difference": differences.get(key),
                "peak_memory_bytes": peaks[key],
            }
            for key, timing in timings.items()
        ]

    def _candidates(self) -> dict[str, Candidate]:
        """Return the competitors to try, those left out that were asked to be or are too slow."""
        candidates = candidates_for(
            *(SIZES[self.name], self.options.backend, self.device, self.dtype, self.peers),
            weight_dtype=self.weight_dtype,
        )
        on_gpu = self.device.type == "cuda"
        skip = {*self.options.skip, *(SLOW if self.mixed or on_gpu else ())}
        if self.mixed:
            skip.add("dense, oneDNN")  # float32 alone
        candidates = {key: value for key, value in candidates.items() if key not in skip}
        if self.mixed:
            return {key: _autocast(one, self.device) for key, one in candidates.items()}
        return candidates

    def _warm_up(self, ours: Candidate) -> None:
        """Compile our kernels, and search for their block sizes where asked."""
        if self.device.type == "cuda" and has_triton():
            from moeut.ops.triton.tuning import warmup

            attempt(functools.partial(warmup, ours.step, search=self.options.tune), self.device)

    def _working(
        self, candidates: dict[str, Candidate]
    ) -> tuple[dict[str, Candidate], dict[str, float]]:
        """Return the competitors that take the size, and how far from ours their results are."""
        failures, peers = self.result["failures"], [peer.name for peer in self.peers]
        working: dict[str, Candidate] = {}
        differences: dict[str, float] = {}
        ours: torch.Tensor | None = None
        for key, candidate in candidates.items():
            where = f"{self.name}, {key}"
            if where in failures:  # it ended an earlier process
                continue
            self.result["trying"] = where
            save(self.result, self.options)
            out, problem = attempt(functools.partial(_first_step, candidate), self.device)
            if key == "ours":
                ours = out
            elif problem is None and ours is not None and key not in NOT_THE_SAME:
                difference = _difference(out, ours)
                if difference is not None:
                    differences[key] = round(difference, 6)
                if key in peers and difference is not None and not difference <= MAX_DIFFERENCE:
                    problem = f"computes something else: {difference:.3f} of the norm away"
            if problem is None:
                working[key] = candidate
            else:
                failures[where] = problem
        self.result["trying"] = self.name
        return working, differences


def _first_step(candidate: Candidate) -> torch.Tensor | None:
    """Run forward and backward, wait for them, and return the result if it is one tensor."""
    candidate.clear()
    out = candidate.forward()
    candidate.backward(out)
    if candidate.device.type == "cuda":
        torch.cuda.synchronize(candidate.device)
    return out.detach() if isinstance(out, torch.Tensor) else None


def _difference(out: torch.Tensor | None, ours: torch.Tensor) -> float | None:
    if out is None or out.shape != ours.shape:
        return None
    return float((out.float() - ours.float()).norm() / ours.float().norm())


def _autocast(candidate: Candidate, device: torch.device) -> Candidate:
    """Compute a candidate's forward pass in bfloat16, from float32 weights."""

    def forward() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return candidate.forward()

    return dataclasses.replace(candidate, forward=forward)


def _roofline(
    size: Size, timing: Timing, limits: Limits, dtype: torch.dtype, weight_dtype: torch.dtype
) -> dict[str, Any]:
    """Return the least times, by operations and by bytes, and the fractions reached."""
    slow = isinstance(size, RouterSize)  # its logits are float32
    moved = (
        forward_bytes(size, dtype.itemsize),
        backward_bytes(size, dtype.itemsize, weight_dtype.itemsize),
    )
    compute = [
        limits.compute_ms(flop, float32=slow) for flop in (size.forward_flop, backward_flop(size))
    ]
    memory = [limits.bytes_ms(one) for one in moved]
    forward, backward = (max(pair) for pair in zip(compute, memory, strict=True))
    both = forward + backward
    unfused = None
    if not isinstance(size, DispatchSize | RouterSize):
        unfused = round(sum(map(limits.bytes_ms, unfused_bytes(size, dtype.itemsize))), 4)
    return {
        "compute_forward_ms": round(compute[0], 4),
        "compute_forward_backward_ms": round(sum(compute), 4),
        "bytes_forward_ms": round(memory[0], 4),
        "bytes_forward_backward_ms": round(sum(memory), 4),
        "unfused_bytes_forward_backward_ms": unfused,
        "roofline_forward_ms": round(forward, 6),
        "roofline_forward_backward_ms": round(both, 6),
        "roofline_forward_fraction": round(forward / timing.forward_ms, 6),
        "roofline_forward_backward_fraction": round(both / timing.forward_backward_ms, 6),
    }


def _row(
    name: str, size: Size, candidate: str, timing: Timing, floor: Timing | None
) -> dict[str, Any]:
    routed_flop = size.forward_flop  # the useful work; computing all experts does more

    def ratio(key: str) -> float | None:
        return None if floor is None else round(getattr(timing, key) / getattr(floor, key), 4)

    return {
        "size": name,
        "candidate": candidate,
        **{key: round(value, 4) for key, value in dataclasses.asdict(timing).items()},
        "forward_ratio": ratio("forward_ms"),
        "forward_backward_ratio": ratio("forward_backward_ms"),
        "forward_backward_min_ratio": ratio("forward_backward_min_ms"),
        "gflop_per_second": round(3 * routed_flop / timing.forward_backward_ms / 1e6, 2),
    }


def table(result: dict[str, Any]) -> Table:
    """Return the times, a line for every size and competitor."""
    columns = (
        *("size", "what", "f ms", "f+b ms", "f ×", "f+b ×", "GFLOP/s", "compute ms", "bytes ms"),
        *("roofline f ms", "%", "f+b ms", "%", "peak MiB"),
    )
    rows = [
        [
            *(row["size"], row["candidate"]),
            *(f"{row[key]:.3f}" for key in ("forward_ms", "forward_backward_ms")),
            *(_text(row[key], ".2f") for key in ("forward_ratio", "forward_backward_ratio")),
            f"{row['gflop_per_second']:.1f}",
            f"{row['compute_forward_backward_ms']:.3f}",
            f"{row['bytes_forward_backward_ms']:.3f}",
            f"{row['roofline_forward_ms']:.3f}",
            f"{100 * row['roofline_forward_fraction']:.0f}",
            f"{row['roofline_forward_backward_ms']:.3f}",
            f"{100 * row['roofline_forward_backward_fraction']:.0f}",
            _text(row["peak_memory_bytes"], ".0f", 2**-20),
        ]
        for row in result["rows"]
    ]
    title = "forward (f) and forward + backward (f+b), medians; × = ratio to dense"
    return Table(
        name="experts",
        title=title,
        columns=list(columns),
        rows=rows,
        num_names=2,
        notes=notes_of(result),
    )


def _text(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(factor * value, form)


def _heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} CPU thread(s), torch "
        f"{machine['torch']}, {result['dtype']}, backend {result['backend']}, load average "
        f"{machine['load_average']}"
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result.

    Raises:
        ValueError: an option has a value that does not fit.
    """
    on_gpu = choose_device(options)
    if options.dtype is None:
        options.dtype = "autocast" if on_gpu else "float32"
    if options.sizes is None:
        options.sizes = list(QUICK_SIZES if options.quick else GPU_SIZES if on_gpu else CPU_SIZES)
    if options.repeats is None:
        options.repeats = 50 if on_gpu else 20
    if options.quick:
        options.repeats = min(options.repeats, 3)
    check_sizes(options.sizes)
    check_counts(options, "threads", "repeats")
    resolve_backend(options.backend, options.device)
    result = measure(options)
    deliver(result, options, _heading(result), [table(result)], width=180)
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
    parser.add_argument(
        "--repeats",
        type=int,
        default=None,
        help="timed rounds, of which medians are shown; 20, or 50 on a GPU, if not given",
    )
    parser.add_argument("--backend", default="auto", help="auto, grouped, triton or reference")
    parser.add_argument(
        "--dtype",
        choices=(*DTYPES, "autocast"),
        default=None,
        help="of every tensor; autocast: bfloat16 with float32 weights, the default on a GPU",
    )
    add_device_options(parser)
    parser.add_argument("--skip", nargs="*", default=[], choices=SLOW, help="leave these out")
    add_peer_option(parser)
    add_tune_option(parser)
    parser.add_argument(
        "--retain-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let malloc keep freed buffers, for every competitor alike",
    )
    add_result_options(parser)
    parser.set_defaults(run=run)
