"""Run every benchmark of the GPU kernels and leave the files of a report in a folder.

Each benchmark runs in a process of its own, a group of sizes at a time, and writes its JSON after
every size: one that dies, is stopped or runs out of memory costs nothing of the others. The same
command goes on where it was stopped. At the end, and after every job, `report.md` is written from
all JSON there is: machine, versions, commands and tables.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runners.bench import experts, model, small_runs
from runners.bench.command import DEVICE_FAILED, add_peer_option, add_tune_option
from runners.bench.layers import LAYERS, QUICK_SIZES, USES
from runners.bench.results import record_failure, write_result
from runners.reporting.tables import to_markdown
from tasks.base.command_line import DONE, RESUMABLE
from tasks.base.storage import write_atomically

TABLES = {"experts": experts.table, "model": model.table, "small-runs": small_runs.table}

Job = tuple[str, list[str]]


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Return names of files and arguments of all benchmarks, the most important first."""
    peers = [text for peer in options.peer for text in ("--peer", peer)]
    tune = ["--tune"] if options.tune else []
    if options.quick:
        yield "experts-tiny", ["experts", "--quick", *peers, "--sizes", *QUICK_SIZES]
        yield "model-tiny", ["model", "--repeats", "1", "--sizes", "tiny"]
        few = ("--steps", "1", "--repeats", "1", "--warm-up", "1")
        yield "small-runs-tiny", ["small-runs", *few, "--sizes", "steps"]
        return
    expert_jobs = {
        layer: (
            f"experts-{layer}",
            ["experts", *peers, *tune, "--sizes", *(f"{use}-{layer}" for use in USES)],
        )
        for layer in LAYERS
    }
    long = [layer for layer in LAYERS if layer.endswith("64k")]
    yield from (expert_jobs.pop(layer) for layer in sorted(long, key=_importance))
    yield "model-small", ["model", *tune, "--sizes", "small"]
    yield "small-runs", ["small-runs", "--sizes", *small_runs.SIZES]
    for label in ("244m", "1b", "44m"):
        for mode in ("eager", "compiled"):
            yield f"model-{label}-{mode}", ["model", *tune, "--sizes", label, "--modes", mode]
    yield from expert_jobs.values()


def _importance(layer: str) -> int:
    return ("244m", "1b", "44m").index(layer.partition("-")[0])


def run(options: argparse.Namespace) -> int:
    """Run what is left to run, and return the exit status: 0 if all is done, 75 if not.

    Raises:
        ValueError: there is no CUDA device, and it is not a quick try.
    """
    if not options.quick and not torch.cuda.is_available():
        raise ValueError("all: no CUDA device is available; --quick tries it without one")
    started = time.monotonic()
    left = []
    for name, arguments in jobs(options):
        file = options.output / f"{name}.json"
        seconds = options.seconds - (time.monotonic() - started) if options.seconds else None
        if (seconds is not None and seconds <= 0) or not _finish(file, arguments, seconds):
            left.append(name)
        report(options.output)
    print(f"runners.bench: {options.output / 'report.md'}")
    if left:
        print(f"runners.bench: left for the same command to go on with: {', '.join(left)}")
    return RESUMABLE if left else DONE


def is_done(file: Path, arguments: list[str]) -> bool:
    """Return whether a result has all sizes that the arguments name."""
    if not file.exists():
        return False
    sizes = arguments[arguments.index("--sizes") + 1 :]
    sizes = sizes[: sizes.index("--modes")] if "--modes" in sizes else sizes
    return set(sizes) <= set(json.loads(file.read_text(encoding="utf-8"))["done"])


def _finish(file: Path, arguments: list[str], seconds: float | None) -> bool:
    """Run a job, again where its device failed, and return whether it is done."""
    command = [sys.executable, "-m", "runners.bench", *arguments, "--json", str(file), "--resume"]
    environment, blocks = dict(os.environ), file.parent / "blocks"
    if "--tune" in arguments or blocks.exists():
        # What a search found is kept beside what was measured with it.
        environment.setdefault("MOEUT_CACHE", str(blocks.resolve()))
    end = None if seconds is None else time.monotonic() + seconds
    while not is_done(file, arguments):
        left = None if end is None else end - time.monotonic()
        before = file.read_text(encoding="utf-8") if file.exists() else None
        try:
            status = subprocess.run(command, check=False, timeout=left, env=environment).returncode
        except subprocess.TimeoutExpired:
            print(f"runners.bench: {file.stem}: stopped, no time left", file=sys.stderr)
            return False
        if status in (-signal.SIGINT, -signal.SIGTERM):
            return False
        if status < 0 and file.exists():
            result = json.loads(file.read_text(encoding="utf-8"))
            if result["trying"] is not None:
                record_failure(result, f"the process ended by signal {-status} in it")
                write_result(file, result)
        # A new process goes on where one has died, or its device.
        can_go_on = status == DEVICE_FAILED or status < 0
        changed = file.exists() and file.read_text(encoding="utf-8") != before
        if status != 0 and not (can_go_on and changed):
            return False
    return True


def report(folder: Path) -> None:
    """Write ``report.md`` from the JSON files of a folder."""
    found = [
        (kind, json.loads(file.read_text(encoding="utf-8")))
        for kind in TABLES
        for file in sorted(folder.glob(f"{kind}*.json"))
    ]
    if found:
        write_atomically(folder / "report.md", "\n".join(_report(found)))


def _report(found: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    machine = found[0][1]["machine"]
    yield f"# Expert kernels on {machine.get('gpu', machine['cpu'])}\n"
    for key, value in machine.items():
        yield f"* {key}: {value}"
    for _kind, one in found:
        limits = one.get("limits")
        if limits is None:
            continue
        yield (
            f"* `{one['command']}`: a large product reaches {limits['tflop_per_second']:.0f} "
            f"TFLOP/s, a large copy {limits['terabytes_per_second']:.2f} TB/s"
        )
    yield ""
    for kind, one in found:
        yield to_markdown(TABLES[kind](one))


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="everything that is measured on a GPU, into a folder, resumable",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs/benchmarks/gpu"), help="folder to write to"
    )
    add_peer_option(parser)
    add_tune_option(parser)
    parser.add_argument(
        "--seconds", type=float, default=None, help="stop then; the same command goes on"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.set_defaults(run=run)
