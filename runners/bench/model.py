"""Time whole training steps of MoEUT beside its parameter-matched dense Transformer.

A step is forward, backward and AdamW on random tokens: bfloat16 compute from float32 weights on a
GPU, float32 on a CPU. Each model runs as it is and compiled by torch.compile; on a GPU also as one
CUDA graph, which shows what launching the kernels costs. All run in turn in every round; medians
are shown. `utilisation` is the rate of useful multiplications (forward, and twice that backward; of
a masked attention all) as a share of what a large product reaches in the same run. `peak` is the
memory of weights, moments and one step.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import moeut
from moeut.config import ModelConfig
from moeut.ops.triton_device import has_triton
from moeut.sizing import count_parameters, macs_per_token, match_parameters
from runners.bench.command import check_counts, deliver
from runners.bench.limits import measure_limits
from runners.bench.sizes import check_sizes
from runners.bench.timing import describe_machine

VOCABULARY_SIZE = 8000
MODES = ("eager", "compiled", "graph")


@dataclasses.dataclass(frozen=True)
class Size:
    """Name the models that are compared and the tokens of a step."""

    batch: int
    length: int
    d_model: int = 0
    preset: str = ""
    """Ending of the presets' names; without one, small models of width ``d_model``."""

    def configs(self) -> dict[str, ModelConfig]:
        """Return MoEUT and the dense Transformer with as many parameters."""
        if self.preset:
            return {
                name: moeut.PRESETS[f"{name}-{self.preset}"] for name in ("moeut", "transformer")
            }
        shared: dict[str, Any] = {
            "form": "decoder_lm",
            "vocabulary_size": min(VOCABULARY_SIZE, 16 * self.d_model),
            "d_model": self.d_model,
            "num_layers": 4,
            "num_heads": 4,
        }
        sparse = moeut.architecture("moeut", **shared)
        dense = moeut.architecture("transformer", **shared)
        budget = count_parameters(sparse)
        return {"moeut": sparse, "transformer": match_parameters(dense, budget)}


SIZES = {
    "tiny": Size(batch=2, length=32, d_model=32),
    "small": Size(batch=8, length=128, d_model=128),
    "44m": Size(batch=64, length=1024, preset="44m"),
    "244m": Size(batch=64, length=1024, preset="244m"),
    "1b": Size(batch=64, length=1024, preset="1b"),
}
CPU_SIZES = ("tiny",)
GPU_SIZES = ("small", "44m", "244m", "1b")


class Trainee:
    """One model with its optimiser, and the ways to run its step."""

    def __init__(self, config: ModelConfig, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = moeut.build(config).to(device).train()
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, fused=True, capturable=on_gpu
        )
        shape = (size.batch, size.length + 1)
        self.tokens = torch.randint(config.vocabulary_size, shape, device=device)
        self.device = device

    def step(self, call: Callable[..., Any]) -> torch.Tensor:
        """Train once and return the loss."""
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            output = call(self.tokens[:, :-1])
        targets = self.tokens[:, 1:].flatten()
        loss = functional.cross_entropy(output.logits.flatten(0, 1), targets)
        (loss + output.auxiliary_loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state_bytes(self) -> int:
        """Return the bytes of weights and moments."""
        return 3 * sum(p.numel() * p.element_size() for p in self.model.parameters())

    def runner(self, mode: str) -> Callable[[], object]:
        """Return a function that runs one step in a mode, after what the mode has to prepare."""
        call = torch.compile(self.model) if mode == "compiled" else self.model
        if mode != "graph":
            return lambda: self.step(call)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(call)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(call)
        return graph.replay


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Time the steps of every chosen size and return the result with what it depends on."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    limits = measure_limits(device, compute_dtype, quick=device.type == "cpu")
    rows: list[dict[str, object]] = []
    failures: dict[str, str] = {}
    for name in options.sizes:
        size = SIZES[name]
        if options.batch is not None:
            size = dataclasses.replace(size, batch=options.batch)
        measured = _measure_size(size, options, device, failures, name)
        tokens = size.batch * size.length
        for (model, mode), (samples, peak, config) in measured.items():
            milliseconds = statistics.median(samples)
            flop = 6.0 * tokens * macs_per_token(config, sequence_length=size.length)
            rate = flop / milliseconds / 1e9
            rows.append(
                {
                    "size": name,
                    "model": model,
                    "mode": mode,
                    "step_ms": round(milliseconds, 4),
                    "step_min_ms": round(min(samples), 4),
                    "tokens_per_second": round(1e3 * tokens / milliseconds),
                    "utilisation": round(rate / limits.tflop_per_second, 4),
                    "peak_memory_bytes": peak,
                    "parameters": count_parameters(config),
                    "tokens": tokens,
                }
            )
    return {
        "benchmark": "model",
        "command": shlex.join(["python", "-m", "runners.bench", *options.command]),
        "repeats": options.repeats,
        "tuned": options.tune,
        "machine": describe_machine(device),
        "limits": dataclasses.asdict(limits),
        "failures": failures,
        "rows": rows,
    }


def _measure_size(
    size: Size,
    options: argparse.Namespace,
    device: torch.device,
    failures: dict[str, str],
    name: str,
) -> dict[tuple[str, str], tuple[list[float], int | None, ModelConfig]]:
    """Return samples in milliseconds, peak memory and config of each model and mode."""
    runners: dict[tuple[str, str], Callable[[], object]] = {}
    peaks: dict[tuple[str, str], int | None] = {}
    configs = size.configs()
    for model, config in configs.items():
        try:
            trainee = Trainee(config, size, device)
            if device.type == "cuda" and has_triton():
                from moeut.ops.triton_tuning import warmup

                warmup(trainee.runner("eager"), search=options.tune)
            for mode in options.modes:
                run = trainee.runner(mode)
                run()  # compiles
                runners[model, mode] = run
                # A replayed graph allocates nothing: its memory was taken when it was captured.
                peaks[model, mode] = _peak(run, trainee) if mode != "graph" else None
        except torch.OutOfMemoryError as error:
            failures[f"{name}, {model}"] = str(error).splitlines()[0]
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    for round_index in range(options.repeats + 2):
        for key, run in runners.items():
            elapsed = _milliseconds(run, device)
            if round_index >= 2:
                samples[key].append(elapsed)
    return {key: (samples[key], peaks[key], configs[key[0]]) for key in runners}


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def _peak(run: Callable[[], object], trainee: Trainee) -> int | None:
    """Return the bytes of weights, moments and the most that a step adds; None off a GPU."""
    if trainee.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(trainee.device)
    before = torch.cuda.memory_allocated(trainee.device)
    run()
    return trainee.state_bytes() + torch.cuda.max_memory_allocated(trainee.device) - before


def print_table(result: dict[str, Any], console: Console) -> None:
    """Print one line for every size, model and mode."""
    machine = result["machine"]
    console.print(f"{machine.get('gpu', machine['cpu'])}, torch {machine['torch']}")
    table = Table(title="training steps, medians")
    for heading in ("size", "model", "mode", "step ms", "tokens/s", "utilisation %", "peak MiB"):
        table.add_column(
            heading, justify="left" if heading in ("size", "model", "mode") else "right"
        )
    previous = None
    for row in result["rows"]:
        if previous not in (None, row["size"]):
            table.add_section()
        table.add_row(
            "" if row["size"] == previous else row["size"],
            row["model"],
            row["mode"],
            f"{row['step_ms']:.2f}",
            f"{row['tokens_per_second']:,}",
            f"{100 * row['utilisation']:.1f}",
            "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.0f}",
        )
        previous = row["size"]
    console.print(table)
    for where, problem in result["failures"].items():
        console.print(f"{where}: left out, {problem}", markup=False)


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result."""
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: no CUDA device is available")
    if options.modes is None:
        options.modes = list(MODES) if on_gpu else ["eager"]
    if options.sizes is None:
        options.sizes = list(GPU_SIZES if on_gpu else CPU_SIZES)
    check_sizes(options.sizes, SIZES)
    if "graph" in options.modes and not on_gpu:
        raise ValueError("--modes graph: CUDA graphs need a CUDA device")
    check_counts(options, "threads", "repeats", "batch")
    result = measure(options)
    deliver(result, options, print_table)
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="whole training steps of MoEUT beside the dense Transformer",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=None, help=f"some of {', '.join(SIZES)}")
    parser.add_argument("--modes", nargs="+", default=None, choices=MODES, help="how to run a step")
    parser.add_argument("--batch", type=int, default=None, help="sequences in a step")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads within an operation")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds; medians are shown")
    parser.add_argument("--device", default=None, help="cpu or cuda (timed by events)")
    parser.add_argument(
        "--tune", action="store_true", help="search for block sizes first, and keep them on disk"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write here")
    parser.set_defaults(run=run)
