"""Time what a large sweep costs beside its training: planning, status, report, each run.

The commands are those of a user, each in a process of its own, in a folder that is removed after.
Runs of one step are executed one after another: one seed of each setting, or of as many settings as
asked for. The other runs get copies of those results. Shown are seconds, seconds on a core, which
other work on the machine changes less, and the largest memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from runners.bench.command import add_json_option, check_counts, command_line, deliver
from runners.bench.results import fresh_result
from runners.bench.timing import describe_machine
from runners.process.run_directory import RunDirectory
from runners.reporting.tables import Table
from tasks.base.storage import write_json

SECONDS, MIB, RUN_SECONDS = 30.0, 1024.0, 0.5
"""What a command may take, and a run beside its training and scoring."""
VARIANTS = """\
  transformer: {model.architecture: transformer, model.depth.group: 1}
  universal: {model.architecture: universal, model.depth.repeats: 2}
  moeut: {model.architecture: moeut, model.depth.group: 1, model.depth.repeats: 2}
  ndr: {model.architecture: ndr, model.depth.repeats: 2}
"""
NUM_VARIANTS = VARIANTS.count("\n")


def sweep_text(settings: int, seeds: int) -> str:
    """Return the YAML of a sweep of tiny runs of one step."""
    rates = [f"{(index + 1) * 1e-5:.5f}" for index in range(-(-settings // NUM_VARIANTS))]
    return f"""\
name: large
base:
  task: {{name: table_lookup, bits: 2, train_rows: 60, test_rows: 20, valid_rows: 0}}
  model: {{d_model: 16, attention: {{num_heads: 2}}}}
  train: {{steps: 1, batch_size: 8, warmup_steps: 0}}
variants:
{VARIANTS}parameters:
  train.learning_rate: {{values: [{", ".join(rates)}]}}
seeds: {seeds}
"""


def measure(*words: str, statuses: tuple[int, ...] = (0,)) -> dict[str, float]:
    """Run a Python module to its end and return its seconds, CPU seconds and peak memory in MiB.

    Raises:
        RuntimeError: it ended with another status.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        command = [sys.executable, "-m", *words]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in statuses:
            output.seek(0)
            raise RuntimeError(f"{' '.join(words)}: {output.read().decode().strip()}")
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "mib": usage.ru_maxrss / 1024,  # KiB on Linux
    }


def copy_results(sweep: Path) -> None:
    """Give every run without a result that of another run of its variant, as its own.

    It is that of another seed of its setting where there is one.
    """
    done: dict[str, RunDirectory] = {}
    directories = sorted(sweep.glob("*/seed*"))
    for directory in directories:
        files = RunDirectory(directory)
        if files.result.is_file():
            done[files.read_record().variant] = done[directory.parent.name] = files
    for directory in directories:
        files = RunDirectory(directory)
        if files.result.is_file():
            continue
        record = files.read_record()
        source = done.get(directory.parent.name, done[record.variant])
        for path in (source.metrics, source.timings, source.path / "env.json", source.predictions):
            shutil.copy(path, directory)
        result = json.loads(source.result.read_text(encoding="utf-8"))
        write_json(files.result, result | vars(record), durable=False)


def overheads(seconds: dict[str, float]) -> list[float]:
    """Return what each run took beside its training and scoring, by its ``timings.json``."""
    found = []
    for directory, whole in seconds.items():
        timings = json.loads(RunDirectory(Path(directory)).timings.read_text(encoding="utf-8"))
        found.append(whole - timings["train_seconds"] - timings["evaluate_seconds"])
    return found


def measure_sweep(
    folder: Path, settings: int, seeds: int, runs: int
) -> tuple[list[dict[str, Any]], ...]:
    """Return the rows of the commands on a sweep, and the row of its runs."""
    file, place, seconds = folder / "large.yaml", folder / "runs", folder / "seconds.json"
    file.write_text(sweep_text(settings, seeds), encoding="utf-8")
    planner = ("runners.bench.sweep_worker", "nobody", str(file), f"--runs-dir={place}")
    rows = [{"what": "planning", **measure(*planner, statuses=(75,))}]
    rows.append({"what": "status, none done", **measure(*planner, statuses=(75,))})
    first = (str(file), f"--runs-dir={place}", "seeds=1", "--no-figures")
    measure("runners.bench.sweep_worker", f"timed={runs}:{seconds}", *first, statuses=(0, 75))
    copy_results(place / "large")
    rows.append({"what": "status, all done", **measure(*planner)})
    rows.append({"what": "report", **measure("runners.report", str(place / "large"))})
    beside = overheads(json.loads(seconds.read_text(encoding="utf-8")))
    quarters = statistics.quantiles(beside, n=4)
    run = {"what": "a run", "runs": len(beside), "median": quarters[1]}
    return rows, [run | {"quartiles": [quarters[0], quarters[2]]}]


def tables(result: dict[str, Any]) -> list[Table]:
    """Return the times of the commands, and of a run beside its training."""
    commands = [
        [row["what"], f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", f"{row['mib']:.0f}"]
        for row in result["rows"]
    ]
    of_runs = [
        [
            str(row["runs"]),
            f"{row['median']:.2f}",
            " to ".join(f"{one:.2f}" for one in row["quartiles"]),
        ]
        for row in result["run"]
    ]
    return [
        Table(
            name="sweep",
            title=f"{result['settings']} settings of {result['seeds']} seeds",
            columns=["command", "seconds", "CPU seconds", "MiB"],
            rows=commands,
            notes=[f"aim: {SECONDS:g} s and {MIB:g} MiB each"],
        ),
        Table(
            name="run",
            title="Seconds of a run beside its training and scoring",
            columns=["runs", "median", "quartiles"],
            rows=of_runs,
            notes=[f"aim: {RUN_SECONDS:g} s"],
        ),
    ]


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result.

    Raises:
        ValueError: an option has a value that does not fit.
    """
    check_counts(options, "settings", "seeds", "runs")
    for name in ("settings", "runs"):
        if (value := getattr(options, name)) % NUM_VARIANTS:
            raise ValueError(f"--{name} {value}: expected a multiple of {NUM_VARIANTS}")
    machine = describe_machine(torch.device("cpu"))
    sizes = {"settings": options.settings, "seeds": options.seeds, "runs": options.runs}
    result = fresh_result("sweep", command_line(options), machine, **sizes)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result["rows"], result["run"] = measure_sweep(Path(folder), **sizes)
    heading = f"{machine['cpu']}, load average {machine['load_average']}"
    deliver(result, options, heading, tables(result))
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="planning, status, report and each run of a large sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--settings", type=int, default=100, help="variants × grid points (100)")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each (20)")
    parser.add_argument("--runs", type=int, default=100, help="runs executed, at most (100)")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (temporary)")
    add_json_option(parser)
    parser.set_defaults(run=run)
