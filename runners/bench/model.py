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
from rich.console import Console
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import moeut
from moeut.config import ModelConfig
from moeut.ops.triton.device import has_triton
from moeut.sizing import count_parameters, macs_per_token, match_parameters
from runners.bench.command import (
    Section,
    add_result_options,
    add_tune_option,
    blame,
    check_counts,
    deliver,
    ditto,
    fresh_result,
    resumed,
    save,
)
from runners.bench.limits import Limits, measure_limits
from runners.bench.sizes import DTYPES, check_sizes
from runners.bench.targets import model_targets
from runners.bench.timing import DeviceFailedError, attempt, describe_machine
from runners.process.environment import set_float32_products

VOCABULARY_SIZE = 8000
MODES = ("eager", "compiled", "graph", "compiled-graph")
MAX_PARTS = 16


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
                name: moeut.preset(f"{name}-{self.preset}") for name in ("moeut", "transformer")
            }
        shared: dict[str, Any] = {
            "form": "decoder_lm",
            "vocabulary_size": min(VOCABULARY_SIZE, 16 * self.d_model),
            "d_model": self.d_model,
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

    def __init__(
        self,
        config: ModelConfig,
        size: Size,
        device: torch.device,
        *,
        weights_dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype = torch.float32,
        parts: int = 1,
    ) -> None:
        torch.manual_seed(0)
        self.config = config
        self.model = moeut.build(config).to(device, weights_dtype).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, fused=True, capturable=device.type == "cuda"
        )
        shape = (size.batch, size.length + 1)
        tokens = torch.randint(config.vocabulary_size, shape, device=device)
        self.parts = tokens.chunk(parts)
        self.device, self.compute_dtype = device, compute_dtype
        self.is_mixed = compute_dtype != weights_dtype

    def step(self, call: Callable[..., Any]) -> torch.Tensor:
        """Train once and return the loss."""
        losses = []
        for tokens in self.parts:
            output = self.forward(call, tokens[:, :-1])
            logits, targets = output.logits.flatten(0, 1).float(), tokens[:, 1:].flatten()
            loss = functional.cross_entropy(logits, targets)
            ((loss + output.auxiliary_loss) / len(self.parts)).backward()
            losses.append(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).mean()

    def forward(self, call: Callable[..., Any], tokens: torch.Tensor) -> Any:
        """Call the model in the dtype to compute in."""
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self.is_mixed):
            return call(tokens)

    def attention_kernels(self) -> list[str]:
        """Return the kernels that attention takes in a forward pass."""
        with _AttentionKernels() as seen:
            self.forward(self.model, self.parts[0][:1, :-1])
        return sorted(seen.names)

    def state_bytes(self) -> int:
        """Return the bytes of weights and moments."""
        return 3 * sum(p.numel() * p.element_size() for p in self.model.parameters())

    def runner(self, mode: str) -> Callable[[], object]:
        """Return a function that runs one step in a mode, after what the mode has to prepare."""
        call = torch.compile(self.model) if mode.startswith("compiled") else self.model
        if not mode.endswith("graph"):
            return functools.partial(self.step, call)
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


class _AttentionKernels(TorchDispatchMode):
    """Note the names of the attention operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        if "scaled_dot_product" in name:
            name = name.removeprefix("_scaled_dot_product_")
            self.names.add(name.removesuffix("_for_cpu").removesuffix("_attention"))
        return func(*args, **(kwargs or {}))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the steps of every chosen size and return the result with what it depends on."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    set_float32_products(device, beside_bfloat16=options.compute_dtype == "bfloat16")
    limits = measure_limits(device, DTYPES[options.compute_dtype], quick=device.type == "cpu")
    fresh = fresh_result(
        "model",
        options,
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
    for name in options.sizes:
        if name in result["done"]:
            continue
        result["trying"] = name
        save(result, options)
        try:
            result["rows"] += _measure_size(name, options, device, limits, result["failures"])
        except DeviceFailedError as error:
            blame(result, str(error))
            save(result, options)
            raise
        result["done"].append(name)
        result["trying"] = None
        save(result, options)
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
        trainees: dict[str, Trainee] = {}
        attention: dict[str, list[str]] = {}
        runners: dict[tuple[str, str], Callable[[], object]] = {}
        peaks: dict[tuple[str, str], int | None] = {}
        for model, config in self.size.configs().items():
            trainee = trainees[model] = Trainee(
                *(config, self.size, self.device),
                weights_dtype=DTYPES[self.options.weights_dtype],
                compute_dtype=DTYPES[self.options.compute_dtype],
                parts=self.parts,
            )
            attention[model] = trainee.attention_kernels()
            if self.device.type == "cuda" and has_triton():
                from moeut.ops.triton.tuning import warmup

                warmup(trainee.runner("eager"), search=self.options.tune)
            for mode in self.modes:
                prepared, problem = attempt(
                    functools.partial(self._prepare, trainee, mode), self.device
                )
                if prepared is None:
                    self.failures[f"{self.name}, {model}, {mode}"] = problem or ""
                    trainee.optimizer.zero_grad(set_to_none=True)
                else:
                    runners[model, mode], peaks[model, mode] = prepared
        samples: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
        for round_index in range(self.options.repeats + 2):
            for key, run in runners.items():
                elapsed = _milliseconds(run, self.device)
                if round_index >= 2:
                    samples[key].append(elapsed)
        return [
            self._row(model, mode, trainees[model].config, samples[model, mode])
            | {"attention": attention[model], "peak_memory_bytes": peaks[model, mode]}
            for model, mode in runners
        ]

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


def sections(result: dict[str, Any]) -> list[Section]:
    """Return the steps as a table, and on a GPU the targets as another."""
    headings = (
        *("size", "model", "mode", "attention"),
        *("parts", "step ms", "tokens/s", "utilisation %", "peak MiB"),
    )
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
    notes = [f"{where}: left out, {problem}" for where, problem in result["failures"].items()]
    title = (
        f"training steps, medians; weights {result['weights_dtype']}, computed in "
        f"{result['compute_dtype']}"
    )
    found = [Section(title, headings, ditto(rows), notes, num_names=4)]
    if "gpu" in result["machine"]:
        found.append(model_targets(result))
    return found


def print_table(result: dict[str, Any], console: Console) -> None:
    """Print one line for every size, model and mode."""
    machine = result["machine"]
    console.print(f"{machine.get('gpu', machine['cpu'])}, torch {machine['torch']}")
    for section in sections(result):
        section.show(console)


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result."""
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: no CUDA device is available")
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
    deliver(measure(options), options, print_table, width=130)
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
    parser.add_argument("--threads", type=int, default=1, help="CPU threads within an operation")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds; medians are shown")
    parser.add_argument("--device", default=None, help="cpu or cuda (timed by events)")
    add_tune_option(parser)
    add_result_options(parser)
    parser.set_defaults(run=run)
