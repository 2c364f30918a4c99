"""Time runs that are too small for a GPU: their steps as CUDA graphs, and several runs at once.

`steps` trains each model of a sweep's file by the loop that a run has: as it is, and replayed
(`train.cuda_graph`). Rounds take the modes in turn; medians are shown, in milliseconds of wall time
a step, the host's reading of the losses included. `together` starts 1, 2, 4 and 8 processes that
train the first model at once, as `--workers-per-gpu` does, and shows the steps of all of them a
second. The processes begin when the last of them is ready. Where NVIDIA's MPS runs they share it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runners.bench.command import (
    add_device_options,
    add_result_options,
    check_counts,
    choose_device,
    command_line,
    deliver,
)
from runners.bench.results import fresh_result, measure_sizes, notes_of, resumed
from runners.bench.timing import attempt, describe_machine
from runners.config.grid import expand, read_sweep
from runners.config.schema import RunConfig
from runners.process.environment import prepare_process
from runners.process.ranks import World
from runners.reporting.tables import Table
from runners.training import graphs
from runners.training.experiment import build, build_model
from runners.training.lengths import train_columns
from runners.training.loop import Loop, seed_everything

SWEEP = Path("configs/quickstart.yaml")
SIZES = ("steps", "together")
WORKERS = (1, 2, 4, 8)


def configs_of(sweep: Path, device: str) -> dict[str, RunConfig]:
    """Return the first run of each variant of a sweep, with steps enough for any measurement."""
    overrides = (f"train.device={device}", "train.steps=1000000", "evaluate.interval=null")
    configs: dict[str, RunConfig] = {}
    for run in expand(read_sweep(sweep, overrides), data_hash=lambda task: ""):
        configs.setdefault(run.variant, run.config)
    return configs


def make_loop(config: RunConfig, device: torch.device, *, replayed: bool) -> Loop:
    """Return the loop of a run, whose steps are CUDA graphs if they are to be ``replayed``.

    Raises:
        OptionError: they cannot be.
    """
    built = build(config)
    seed_everything(config.seed)
    model = build_model(built.model_config, device)
    train = dataclasses.replace(config.train, cuda_graph=replayed)
    return Loop(
        train,
        objective=built.objective,
        model=model,
        columns=train_columns(built.objective),
        seed=config.seed,
        d_model=built.model_config.d_model,
        device=device,
        capture=graphs.capture_of(train, model, device, World(), macs_per_step=0),
    )


def measure_steps(
    configs: Mapping[str, RunConfig], options: argparse.Namespace, failures: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the milliseconds of a step of each model and mode."""
    device = torch.device(options.device)
    rows = []
    for name, config in configs.items():
        prepare_process(config.train, device)
        loops = {}
        for mode in ("plain", "replayed") if device.type == "cuda" else ("plain",):
            prepare = functools.partial(make_loop, config, device, replayed=mode == "replayed")
            made, problem = attempt(prepare, device)
            if made is None:
                failures[f"steps, {name}, {mode}"] = problem or ""
            else:
                loops[mode] = made
        samples: dict[str, list[float]] = {mode: [] for mode in loops}
        for round_index in range(options.repeats + 1):
            for mode, loop in loops.items():
                count = options.steps if round_index else options.warm_up
                elapsed = _seconds(loop, count)
                if round_index:
                    samples[mode].append(1e3 * elapsed / count)
        rows += [
            {"size": "steps", "model": name, "mode": mode, "step_ms": statistics.median(found)}
            for mode, found in samples.items()
        ]
    return rows


def _seconds(loop: Loop, count: int) -> float:
    """Return the wall time of some steps; each ends with the host reading its losses."""
    start = time.perf_counter()
    for _ in range(count):
        loop.advance()
    return time.perf_counter() - start


# --- several processes ------------------------------------------------------------------


def measure_together(
    configs: Mapping[str, RunConfig], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the steps a second of several processes that train the first model at once."""
    name = next(iter(configs))
    modes = ("plain", "replayed") if options.device == "cuda" else ("plain",)
    return [
        {
            "size": "together",
            "model": name,
            "mode": mode,
            "workers": workers,
            "steps_per_second": sum(_trained_at_once(options, mode, workers)),
        }
        for mode in modes
        for workers in options.workers
    ]


def _trained_at_once(options: argparse.Namespace, mode: str, workers: int) -> list[float]:
    """Return the steps a second of each of several processes, all of them training.

    Raises:
        RuntimeError: one of them has failed.
    """
    command = [sys.executable, "-m", "runners.bench.small_runs", str(options.sweep)]
    command += [options.device, mode, str(options.warm_up), str(options.steps * options.repeats)]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [*command, folder, str(workers)],
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env=os.environ,
            )
            for _ in range(workers)
        ]
        found = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"one of {workers} processes has failed")
    return [json.loads(text.splitlines()[-1]) for text in found]


def work(arguments: Sequence[str]) -> None:
    """Train as one of several processes, and print the steps a second while all of them did."""
    sweep, name, mode, warm_up, steps, folder, workers = arguments
    device = torch.device(name)
    config = next(iter(configs_of(Path(sweep), name).values()))
    prepare_process(config.train, device)
    loop = make_loop(config, device, replayed=mode == "replayed")
    _seconds(loop, int(warm_up))
    Path(folder, str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < int(workers):
        time.sleep(0.01)
    print(json.dumps(int(steps) / _seconds(loop, int(steps))))


# --- the command ------------------------------------------------------------------------


def table(result: dict[str, Any]) -> Table:
    """Return what was measured, a line for each model, mode and number of processes."""
    rows = [
        [
            *(row["size"], row["model"], row["mode"], str(row.get("workers", 1))),
            f"{row['step_ms']:.2f}" if "step_ms" in row else "",
            f"{row['steps_per_second']:.1f}" if "steps_per_second" in row else "",
        ]
        for row in result["rows"]
    ]
    return Table(
        name="small_runs",
        title="small runs: one at a time, and several at once",
        columns=["size", "model", "mode", "runs", "step ms", "steps/s of all"],
        rows=rows,
        num_names=4,
        notes=notes_of(result),
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result.

    Raises:
        ValueError: an option has a value that does not fit.
    """
    choose_device(options)
    check_counts(options, "steps", "repeats", "warm_up")
    configs = configs_of(options.sweep, options.device)
    machine = describe_machine(torch.device(options.device))
    fresh = fresh_result(
        "small-runs",
        command_line(options),
        machine,
        sweep=str(options.sweep),
        steps=options.steps,
        repeats=options.repeats,
        workers=list(options.workers),
    )
    result = resumed(options, fresh, "sweep", "steps", "repeats", "workers")

    def measure(size: str) -> list[dict[str, Any]]:
        if size == "steps":
            return measure_steps(configs, options, result["failures"])
        return measure_together(configs, options)

    measure_sizes(result, options, measure)
    heading = f"{machine.get('gpu', machine['cpu'])}, torch {machine['torch']}"
    deliver(result, options, heading, [table(result)])
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="small runs: steps as CUDA graphs, and several runs on one GPU",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES, help="what to measure")
    parser.add_argument("--sweep", type=Path, default=SWEEP, help="whose models are trained")
    parser.add_argument("--steps", type=int, default=50, help="steps of a round")
    parser.add_argument(
        "--warm-up", type=int, default=40, help="steps before any is timed, which record"
    )
    parser.add_argument(
        "--repeats", type=int, default=10, help="rounds, of which medians are shown"
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=WORKERS, help="processes that train at once"
    )
    add_device_options(parser)
    add_result_options(parser)
    parser.set_defaults(run=run)


if __name__ == "__main__":
    work(sys.argv[1:])
