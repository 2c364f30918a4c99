"""Time whole training steps of MoEUT beside its parameter-matched dense Transformer.

A step is forward, backward and AdamW on random tokens: bfloat16 compute from float32 weights on a
GPU, float32 on a CPU. Each model runs as it is and compiled by torch.compile, and small ones on a
GPU also as one CUDA graph, of either, which shows what launching the kernels costs. All run in turn
in every round; medians are shown. Where the tokens of a step do not fit in memory at once, both
models take them in as many parts (`parts`) as the larger one needs, and add up gradients.

`utilisation` is the rate of useful multiplications (forward, and twice that backward; of a masked
attention all) as a share of what a large product reaches in the same run. `attention` is the kernel
that serves the softmax, `peak` the memory of weights, moments and one step.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from moeut.config import ModelConfig
from moeut.ops.backend import has_triton
from moeut.sizing import count_parameters, macs_per_token
from runners.bench.command import (
    add_device_options,
    add_result_options,
    add_tune_option,
    check_counts,
    choose_device,
    command_line,
    deliver,
)
from runners.bench.layers import DTYPES, check_sizes
from runners.bench.limits import Limits, measure_limits
from runners.bench.results import fresh_result, measure_sizes, notes_of, resumed
from runners.bench.timing import attempt, describe_machine
from runners.bench.trainee import CPU_SIZES, GPU_SIZES, SIZES, Size, Trainee
from runners.process.environment import set_float32_products
from runners.reporting.tables import Table

MODES = ("eager", "compiled", "graph", "compiled-graph")
MAX_PARTS = 16


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the steps of every chosen size and return the result with what it depends on."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    set_float32_products(device, beside_bfloat16=options.compute_dtype == "bfloat16")
    limits = measure_limits(device, DTYPES[options.compute_dtype], quick=device.type == "cpu")
    fresh = fresh_result(
        "model",
        command_line(options),
        describe_machine(device),
        weights_dtype=options.weights_dtype,
        compute_dtype=options.compute_dtype,
        modes=options.modes,
        batch=options.batch,
        repeats=options.repeats,
        tuned=options.tune,
        limits=dataclasses.asdict(limits),
    )
    result = resumed(options, fresh, "weights_dtype", "compute_dtype", "modes", "batch")
    failures = result["failures"]
    measure_sizes(
        *(result, options),
        lambda name: _measure_size(name, options, device, limits, failures),
    )
    return result


def _measure_size(
    name: str,
    options: argparse.Namespace,
    device: torch.device,
    limits: Limits,
    failures: dict[str, str],
) -> list[dict[str, Any]]:
    """Return a row for each model and mode, in as few parts as memory allows."""
    size = SIZES[name]
    if options.batch is not None:
        size = dataclasses.replace(size, batch=options.batch)
    modes = options.modes or default_modes(name, device)
    parts = options.parts or 1
    while True:
        comparison = _Comparison(name, size, modes, parts, options, device, limits)
        rows, problem = attempt(comparison.measure, device)
        more = 2 * parts
        if options.parts or not is_out_of_memory(problem, comparison.failures):
            break
        if more > min(MAX_PARTS, size.batch):
            break
        parts = more
    failures.update(comparison.failures)
    if problem is not None:
        failures[name] = problem
    return rows or []


def is_out_of_memory(problem: str | None, failures: dict[str, str]) -> bool:
    """Return whether memory was short in the whole or in a part."""
    return any("OutOfMemoryError" in (one or "") for one in (problem, *failures.values()))


def default_modes(name: str, device: torch.device) -> list[str]:
    """Return how the step of a size is run: large ones hold memory that a graph would keep."""
    if device.type != "cuda":
        return ["eager"]
    return list(MODES) if not SIZES[name].preset else ["eager", "compiled"]


@dataclasses.dataclass
class _Comparison:
    """Compare the two models of a size."""

    name: str
    size: Size
    modes: list[str]
    parts: int
    options: argparse.Namespace
    device: torch.device
    limits: Limits
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def measure(self) -> list[dict[str, Any]]:
        """Return a row for each model and mode."""
        trainees = {name: self._trainee(config) for name, config in self.size.configs().items()}
        attention = {name: trainee.attention_kernels() for name, trainee in trainees.items()}
        runners: dict[tuple[str, str], Callable[[], object]] = {}
        peaks: dict[tuple[str, str], int | None] = {}
        for model, trainee in trainees.items():
            for mode in self.modes:
                prepare = functools.partial(self._prepare, trainee, mode)
                prepared, problem = attempt(prepare, self.device)
                if prepared is None:
                    self.failures[f"{self.name}, {model}, {mode}"] = problem or ""
                    trainee.optimizer.zero_grad(set_to_none=True)
                else:
                    runners[model, mode], peaks[model, mode] = prepared
        samples = self._time(runners)
        return [
            self._row(model, mode, trainees[model].config, samples[model, mode])
            | {"attention": attention[model], "peak_memory_bytes": peaks[model, mode]}
            for model, mode in runners
        ]

    def _trainee(self, config: ModelConfig) -> Trainee:
        """Return a model that is ready to train, its kernels compiled."""
        trainee = Trainee(
            *(config, self.size, self.device),
            weights_dtype=DTYPES[self.options.weights_dtype],
            compute_dtype=DTYPES[self.options.compute_dtype],
            parts=self.parts,
        )
        if self.device.type == "cuda" and has_triton():
            from moeut.ops.triton.tuning import warmup

            warmup(trainee.runner("eager"), search=self.options.tune)
        return trainee

    def _time(
        self, runners: dict[tuple[str, str], Callable[[], object]]
    ) -> dict[tuple[str, str], list[float]]:
        """Return the milliseconds of each, all in turn in every round; two rounds warm up."""
        samples: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
        for round_index in range(self.options.repeats + 2):
            for key, run in runners.items():
                elapsed = _milliseconds(run, self.device)
                if round_index >= 2:
                    samples[key].append(elapsed)
        return samples

    def _prepare(self, trainee: Trainee, mode: str) -> tuple[Callable[[], object], int | None]:
        run = trainee.runner(mode)
        run()  # compiles
        # A replayed graph allocates nothing: its memory was taken when it was captured.
        return run, None if mode.endswith("graph") else _peak(run, trainee)

    def _row(
        self, model: str, mode: str, config: ModelConfig, samples: list[float]
    ) -> dict[str, Any]:
        tokens = self.size.batch * self.size.length
        milliseconds = statistics.median(samples)
        flop = 6.0 * tokens * macs_per_token(config, sequence_length=self.size.length)
        return {
            "size": self.name,
            "model": model,
            "mode": mode,
            "parts": self.parts,
            "step_ms": round(milliseconds, 4),
            "step_min_ms": round(min(samples), 4),
            "tokens_per_second": round(1e3 * tokens / milliseconds),
            "utilisation": round(flop / milliseconds / 1e9 / self.limits.tflop_per_second, 4),
            "parameters": count_parameters(config),
            "tokens": tokens,
        }


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


def table(result: dict[str, Any]) -> Table:
    """Return the steps, a line for every size, model and mode."""
    columns = ("size", "model", "mode", "attention")
    numbers = ("parts", "step ms", "tokens/s", "utilisation %", "peak MiB")
    rows = [
        [
            *(row["size"], row["model"], row["mode"], ", ".join(row["attention"])),
            str(row["parts"]),
            f"{row['step_ms']:.2f}",
            f"{row['tokens_per_second']:,}",
            f"{100 * row['utilisation']:.1f}",
            "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.0f}",
        ]
        for row in result["rows"]
    ]
    title = (
        f"training steps, medians; weights {result['weights_dtype']}, computed in "
        f"{result['compute_dtype']}"
    )
    return Table(
        name="model",
        title=title,
        columns=[*columns, *numbers],
        rows=rows,
        num_names=len(columns),
        notes=notes_of(result),
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result.

    Raises:
        ValueError: an option has a value that does not fit.
    """
    on_gpu = choose_device(options)
    if options.sizes is None:
        options.sizes = list(GPU_SIZES if on_gpu else CPU_SIZES)
    if options.compute_dtype is None:
        options.compute_dtype = "bfloat16" if on_gpu else "float32"
    check_sizes(options.sizes, SIZES)
    graphs = [mode for mode in options.modes or () if mode.endswith("graph")]
    if graphs and not on_gpu:
        raise ValueError(f"--modes {graphs[0]}: CUDA graphs need a CUDA device")
    if "float16" in (options.weights_dtype, options.compute_dtype):
        raise ValueError("float16 needs loss scaling, which a step here has not: try bfloat16")
    check_counts(options, "threads", "repeats", "batch", "parts")
    result = measure(options)
    machine = result["machine"]
    heading = f"{machine.get('gpu', machine['cpu'])}, torch {machine['torch']}"
    deliver(result, options, heading, [table(result)], width=130)
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
    parser.add_argument(
        "--parts", type=int, default=None, help="parts of a step; if not given, as memory asks"
    )
    parser.add_argument("--weights-dtype", choices=DTYPES, default="float32", help="of weights")
    parser.add_argument(
        "--compute-dtype",
        choices=DTYPES,
        default=None,
        help="of products; autocast if weights have another; bfloat16 on a GPU if not given",
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds; medians are shown")
    add_device_options(parser)
    add_tune_option(parser)
    add_result_options(parser)
    parser.set_defaults(run=run)
