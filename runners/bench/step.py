"""Time training steps and decoding beside this suite's older code and beside published code.

Every contestant is a process of its own, which runs when it is its turn: a disturbance of the
machine meets all of them, and the seconds are those that the process spent on a core, so that other
work beside it counts little. Shown are the medians over rounds, with the quartiles, and the ratio
to what a size is compared with, of which the medians are those of the same rounds.

--base PATH is a checkout of this suite as it was; --peer NAME=PATH one of nanoGPT,
transformer_generalization (SCAN) and ndr (table lookup). Transformers' Llama takes part where
Transformers is installed. `rate` is how many multiplications a second the model's products get, of
all that a step does, beside what one large product reaches.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from moeut.ops import linear, native
from runners.bench.command import add_json_option, check_counts, command_line, deliver
from runners.bench.layers import check_sizes
from runners.bench.results import fresh_result, notes_of
from runners.bench.step_cases import CONTESTS, GROUPS, PEERS, Contest
from runners.bench.timing import describe_machine
from runners.process.environment import ROOT
from runners.reporting.tables import Table

WORKER = Path(__file__).with_name("step_worker.py")

Turn = Callable[[int], float]
"""Runs so many repetitions and returns the CPU seconds of one."""


@contextmanager
def started(
    contestant: dict[str, Any], checkout: Path, threads: int, *, wall: bool = False
) -> Iterator[Turn]:
    """Start a contestant in a process, and give what lets it run; the process ends with it.

    Its seconds are those of its threads together, or of the clock on the ``wall``.

    Raises:
        ValueError: it cannot be built; the message is the last line of its errors.
    """
    words = [
        sys.executable,
        str(WORKER),
        json.dumps({**contestant, "threads": threads, "wall": wall}),
    ]
    wanted = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    # What this process asked for itself would speed up code that does not ask.
    environment = {
        name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"
    }
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=checkout,
        env={**environment, **wanted, "MKL_NUM_THREADS": str(threads)},
        encoding="utf-8",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    given, answered = process.stdin, process.stdout

    def turn(count: int) -> float:
        given.write(f"{count}\n")
        given.flush()
        return float(answered.readline())

    try:
        if answered.readline().strip() != "ready":
            lines = process.stderr.read().strip().splitlines()
            raise ValueError(lines[-1] if lines else "it ended")
        yield turn
    finally:
        process.kill()
        process.wait()


def contestants(
    name: str, contest: Contest, options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """Yield the name, the description and the checkout of everyone who takes part in a contest."""
    yield name, {**contest.mine, "retain_memory": True}, ROOT
    if options.base is not None:
        yield f"{name}, base", contest.mine, options.base
    for peer, about in contest.peers.items():
        path = options.paths.get(peer)
        if peer == "llama" and importlib.util.find_spec("transformers") is not None:
            path = ROOT
        if path is not None:
            yield f"{name}, {peer}", {**about, "maker": peer}, path


def measure_group(
    names: list[str], options: argparse.Namespace, failures: dict[str, str]
) -> dict[str, list[float]]:
    """Return the CPU seconds of each contestant of some contests, round by round."""
    samples: dict[str, list[float]] = {}
    with ExitStack() as stack:
        turns: dict[str, tuple[Turn, int]] = {}
        for name in names:
            repeats = max(1, CONTESTS[name].repeats // (10 if options.quick else 1))
            for label, about, checkout in contestants(name, CONTESTS[name], options):
                try:
                    process = started(about, checkout, options.threads, wall=options.wall)
                    turns[label] = stack.enter_context(process), repeats
                except ValueError as problem:
                    failures[label] = str(problem)
        for _ in range(options.rounds):
            for label, (turn, repeats) in turns.items():
                samples.setdefault(label, []).append(turn(repeats))
    return samples


def rows_of(names: list[str], samples: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a row for each contestant: its times, and its ratio to what it is compared with."""
    rows = []
    for label, seconds in samples.items():
        size, _, whose = label.partition(", ")
        contest = CONTESTS[size]
        quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
        row = {
            "size": size,
            "whose": whose or "ours",
            "ms": 1e3 * statistics.median(seconds),
            "quartiles_ms": [1e3 * quarters[0], 1e3 * quarters[2]],
        }
        if not whose:
            other = contest.against if contest.against in names else f"{size}, {contest.against}"
            if other in samples:
                ratios = [a / b for a, b in zip(seconds, samples[other], strict=True)]
                row |= {"against": contest.against, "ratio": statistics.median(ratios)}
                row |= {"spread": [min(ratios), max(ratios)], "target": contest.target}
        rows.append(row)
    return rows


def product_rates(threads: int, *, wall: bool) -> dict[str, float]:
    """Return GFLOP/s of a large product by our layer, by oneDNN and by ``torch.mm``."""
    clock = time.perf_counter if wall else time.process_time
    torch.set_num_threads(threads)
    x, weight = torch.randn(2048, 512), torch.randn(512, 512)
    ways: dict[str, Callable[[], object]] = {
        "linear": lambda: linear(x, weight),
        "torch.mm": lambda: torch.mm(x, weight),
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        onednn = torch.ops.mkldnn._linear_pointwise.default
        ways["oneDNN"] = lambda: onednn(x, weight, None, "none", [], "")
    best = dict.fromkeys(ways, float("inf"))
    with torch.no_grad():
        for _ in range(12):
            for name, way in ways.items():
                began = clock()
                for _ in range(5):
                    way()
                best[name] = min(best[name], (clock() - began) / 5)
    return {name: 2e-9 * 2048 * 512 * 512 / seconds for name, seconds in best.items()}


def table(result: dict[str, Any]) -> Table:
    """Return the times, a line for every contestant."""
    clock = "wall" if result["wall"] else "CPU"
    rows = [
        [
            *(row["size"], row["whose"], f"{row['ms']:.2f}"),
            " to ".join(f"{one:.2f}" for one in row["quartiles_ms"]),
            *(
                (
                    f"{row['ratio']:.2f}",
                    " to ".join(f"{one:.2f}" for one in row["spread"]),
                    f"{row['target']:.2f} of {row['against']}",
                )
                if "ratio" in row
                else ("", "", "")
            ),
        ]
        for row in result["rows"]
    ]
    columns = ["size", "whose", f"{clock} ms", "quartiles", "ratio", "lowest to highest", "target"]
    return Table(
        name="step",
        title=f"{clock} time of a step or a decoding, medians over rounds",
        columns=columns,
        rows=rows,
        num_names=2,
        notes=notes_of(result),
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result.

    Raises:
        ValueError: an option has a value that does not fit.
    """
    check_counts(options, "threads", "rounds")
    sizes = options.sizes or list(CONTESTS)
    check_sizes(sizes, CONTESTS)
    options.paths = {}
    for text in options.peer:
        name, _, path = text.partition("=")
        if not Path(path).is_dir() or not path:
            raise ValueError(f"--peer {text!r}: expected NAME=PATH of a folder")
        options.paths[name] = Path(path)
    unknown = sorted(set(options.paths) - set(PEERS))
    if unknown:
        raise ValueError(f"--peer {unknown[0]}: expected one of {', '.join(PEERS)}")
    result = fresh_result(
        "step",
        command_line(options),
        describe_machine(torch.device("cpu")),
        threads=options.threads,
        wall=options.wall,
        native=native.why_not() or "loaded",
        product_gflops=product_rates(options.threads, wall=options.wall),
    )
    for group in GROUPS:
        names = [name for name in group if name in sizes]
        if names:
            samples = measure_group(names, options, result["failures"])
            result["rows"] += rows_of(names, samples)
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in result["product_gflops"].items())
    machine = result["machine"]
    heading = (
        f"{machine['cpu']}, {options.threads} thread(s), torch {machine['torch']}, load average "
        f"{machine['load_average']}; GFLOP/s of a large product: {rates}"
    )
    deliver(result, options, heading, [table(result)], width=180)
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="training steps and decoding on a CPU beside older code and published code",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=None, help=f"some of {', '.join(CONTESTS)}")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant (7)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps of a turn")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a contestant (1)")
    parser.add_argument(
        "--wall",
        action="store_true",
        help="seconds of the clock, for several threads on a machine that does nothing else",
    )
    parser.add_argument(
        "--base", type=Path, default=None, metavar="PATH", help="checkout of the code as it was"
    )
    parser.add_argument(
        *("--peer", "-p"),
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"published code, one of {', '.join(PEERS)}; may be repeated",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)
