"""Time decoding with the key/value cache beside decoding that reads everything again.

A batch of prompts of random tokens is continued greedily by random weights, MoEUT's and its dense
Transformer's: the weights do not change what a token costs. `first` is the time to the first token,
in which both ways read the prompt; `next` that of every later one, the mean over them.
`evaluations` counts calls of the model and `read` the tokens of a row that it is given, both for
the tokens after the first. All ways run in turn in every round; medians are shown. On a GPU compute
is bfloat16 from float32 weights, on a CPU float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any

import torch

import moeut
from moeut.models import DecoderLM
from moeut.sampling import generate
from moeut.sizing import count_parameters
from runners.bench.command import (
    add_device_options,
    add_json_option,
    check_counts,
    choose_device,
    command_line,
    deliver,
)
from runners.bench.layers import check_sizes
from runners.bench.timing import describe_machine
from runners.bench.trainee import SIZES
from runners.reporting.tables import Table

WAYS = {"cache": True, "reread": False}


@dataclasses.dataclass(frozen=True)
class Pass:
    """Hold what one continuation took."""

    first: float
    """Seconds to the first token."""
    later: float
    """Seconds from the first token to the last."""
    reads: list[int]
    """Tokens of a row in each call of the model, the prompt's first."""
    tokens: torch.Tensor


def continue_once(
    model: DecoderLM, prompts: torch.Tensor, num_tokens: int, *, use_cache: bool
) -> Pass:
    """Continue prompts (B, T) greedily by ``num_tokens`` tokens, and time it."""
    device = prompts.device
    ends: list[float] = []
    reads: list[int] = []

    def on_token(chosen: torch.Tensor, running: torch.Tensor) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())

    hook = model.register_forward_pre_hook(lambda _, inputs: reads.append(inputs[0].shape[1]))
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            decoded = generate(
                model,
                prompts,
                torch.ones_like(prompts, dtype=torch.bool),
                max_tokens=num_tokens,
                temperature=0.0,
                use_cache=use_cache,
                on_token=on_token,
            )
    finally:
        hook.remove()
    return Pass(ends[0] - start, ends[-1] - ends[0], reads, decoded.tokens)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every model, prompt length and way; return the result with what it depends on."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    rows = []
    for size in options.sizes:
        for name, config in SIZES[size].configs().items():
            torch.manual_seed(0)
            model = moeut.build(config).to(device).eval()
            assert isinstance(model, DecoderLM)
            for length in options.prompts:
                prompts = torch.randint(
                    config.vocabulary_size, (options.batch, length), device=device
                )
                for row in _compare(model, prompts, options):
                    rows.append({"size": size, "model": name, "prompt": length, **row})
                    rows[-1]["parameters"] = count_parameters(config)
    return {
        "benchmark": "generate",
        "command": command_line(options),
        "repeats": options.repeats,
        "batch": options.batch,
        "tokens": options.tokens,
        "machine": describe_machine(device),
        "rows": rows,
    }


def _compare(
    model: DecoderLM, prompts: torch.Tensor, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a row for each way to continue the same prompts."""
    samples: dict[str, list[Pass]] = {way: [] for way in WAYS}
    for round_index in range(options.repeats + 1):
        for way, use_cache in WAYS.items():
            done = continue_once(model, prompts, options.tokens, use_cache=use_cache)
            if round_index:  # the first round warms up
                samples[way].append(done)
    written = [passes[0].tokens for passes in samples.values()]
    rows = []
    for way, passes in samples.items():
        first = statistics.median(done.first for done in passes)
        later = statistics.median(done.later for done in passes)
        later_tokens = options.tokens - 1
        rows.append(
            {
                "way": way,
                "first_ms": round(1e3 * first, 4),
                "next_ms": round(1e3 * later / later_tokens, 4),
                "tokens_per_second": round(prompts.shape[0] * later_tokens / later, 2),
                "evaluations": len(passes[0].reads) - 1,
                "read": sum(passes[0].reads[1:]),
                # Rounding differs between the ways, and greedy decoding amplifies a near tie.
                "same_tokens": round((written[0] == written[1]).float().mean().item(), 4),
            }
        )
    return rows


def table(result: dict[str, Any]) -> Table:
    """Return a line for every size, model, prompt length and way."""
    reread = {_place(row): row["next_ms"] for row in result["rows"] if row["way"] == "reread"}
    rows = [
        [
            *(row["size"], row["model"], row["way"], str(row["prompt"])),
            f"{row['first_ms']:.1f}",
            f"{row['next_ms']:.2f}",
            f"{row['tokens_per_second']:,.1f}",
            str(row["evaluations"]),
            f"{row['read']:,}",
            f"{reread[_place(row)] / row['next_ms']:.1f}" if row["way"] == "cache" else "",
        ]
        for row in result["rows"]
    ]
    columns = ("size", "model", "way", "prompt", "first ms", "next ms", "tokens/s")
    return Table(
        name="generate",
        title=f"{result['tokens']} tokens after each of {result['batch']} prompts, medians",
        columns=[*columns, "evaluations", "read", "faster"],
        rows=rows,
        num_names=3,
    )


def _place(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["size"], row["model"], row["prompt"]


def _heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} of {machine['cores']} cores, "
        f"load {machine['load_average']} at the end, torch {machine['torch']}"
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result.

    Raises:
        ValueError: an option has a value that does not fit.
    """
    choose_device(options)
    check_sizes(options.sizes, SIZES)
    check_counts(options, "batch", "repeats", "threads")
    if options.tokens < 2:
        raise ValueError(f"--tokens {options.tokens}: expected at least 2, a first and a next")
    if min(options.prompts) < 1:
        raise ValueError(f"--prompts {min(options.prompts)}: expected at least 1")
    result = measure(options)
    deliver(result, options, _heading(result), [table(result)])
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="decoding with the key/value cache and without",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=["44m"], help=f"some of {', '.join(SIZES)}")
    parser.add_argument(
        "--prompts", nargs="+", type=int, default=[16, 128, 512], help="tokens of a prompt"
    )
    parser.add_argument("--tokens", type=int, default=9, help="tokens that are written")
    parser.add_argument("--batch", type=int, default=1, help="prompts at once")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds; medians are shown")
    add_device_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)
