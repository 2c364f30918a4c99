"""What a sweep would do, without doing it: ``python -m runners.sweep … --dry-run``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from runners.config.grid import PlannedRun
from runners.config.schema import RunConfig
from runners.process.environment import choose_device
from runners.process.run_directory import RunDirectory
from runners.process.terminal import duration
from runners.training.cost import describe_model, macs_per_token, mean_lengths, seconds_per_step
from runners.training.experiment import Built

MEASURE_SECONDS = 2.0
"""Time that the updates of one setting are measured over."""
COSTLY = (
    "batch_size",
    "tokens_per_batch",
    "accumulate",
    "precision",
    "compile",
    "activation_checkpointing",
    "device",
    "num_threads",
    "deterministic",
)
"""Options of ``train`` that decide how long an update takes."""
MEASURE_LIMIT = 8
"""Settings that are measured; the time of further ones is scaled by multiply-accumulates."""
MEASURE_MACS = 1e11
"""Multiply-accumulates of a forward pass that a CPU is measured with, some ten seconds of an
update: of a larger batch fewer rows are read, and of a larger row no time is given."""


def print_plan(
    planned: Sequence[PlannedRun],
    built: Mapping[str, Built],
    *,
    ours: Sequence[str],
    workers: int,
    console: Console,
) -> None:
    """Print the number of runs, and sizes and an estimate of time for each setting.

    The time is that of training, from a few updates on this machine, one run at a time; scoring is
    not in it. There is none where the text is not packed yet. Nothing is written.
    """
    settings: dict[str, list[PlannedRun]] = {}
    for run in planned:
        settings.setdefault(run.hash, []).append(run)
    estimate = _Estimate()
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "runs", "parameters", "MACs/token", "steps", "s/step", "train time"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    total, unknown = 0.0, 0
    for digest, runs in settings.items():
        first = runs[0]
        model = describe_model(built[digest])
        step, is_measured = estimate.seconds_per_step(first.config, built[digest])
        mark = "" if is_measured else "~"
        left = [run for run in runs if RunDirectory(run.directory).status() != "done"]
        seconds = None if step is None else step * first.config.train.steps
        total += (seconds or 0.0) * len(left)
        unknown += seconds is None
        name = " ".join(
            [first.variant, *(f"{key}={value}" for key, value in first.parameters.items())]
        )
        table.add_row(
            name,
            str(len(runs)),
            f"{model.parameters:,}",
            f"{model.macs_per_token:,}",
            f"{first.config.train.steps:,}",
            "–" if step is None else f"{mark}{step:.3f}",
            "–" if seconds is None else f"{mark}{duration(seconds)}",
        )
    done = sum(RunDirectory(run.directory).status() == "done" for run in planned)
    console.print(table)
    marked = [name for name in ours if any(run.variant == name for run in planned)]
    if marked:
        console.print(
            f"ours, and not among the paper's: {', '.join(marked)}", highlight=False, soft_wrap=True
        )
    lacks = dict.fromkeys(each.lacks for each in built.values() if each.lacks)
    if lacks:
        console.print(f"{len(planned)} runs, none of which can start:", highlight=False)
        for lack in lacks:
            console.print(lack, markup=False, highlight=False, soft_wrap=True)
        return
    console.print(
        f"{len(planned)} runs, {done} of them done; about {duration(total / workers)} of training "
        f"with {workers} at a time (measured: up to {MEASURE_SECONDS:g} s of updates of "
        f"each of {len(estimate.measured)} settings on this machine, one after another; others, "
        "marked ~, in proportion to MACs; scoring comes on top)"
        + (f"; {unknown} settings are too large to be timed on this CPU" if unknown else ""),
        highlight=False,
        soft_wrap=True,
    )


class _Estimate:
    """Time of an update: measured once for all settings that cost the same, and a few of those."""

    def __init__(self) -> None:
        self.measured: dict[str, tuple[float, float]] = {}
        """What decides the cost → (seconds, multiply-accumulates) of an update."""

    def seconds_per_step(self, config: RunConfig, built: Built) -> tuple[float | None, bool]:
        """Return the seconds of an update, if they are known, and whether they were measured."""
        train = {name: getattr(config.train, name) for name in COSTLY}
        key = json.dumps([config.task, built.model_config.to_dict(), train], sort_keys=True)
        tokens = config.train.tokens_per_batch or (
            config.train.batch_size * sum(mean_lengths(built.objective))
        )
        work = float(macs_per_token(built) * tokens)
        if built.lacks:
            return None, False
        smaller = _fewer_rows(config, work)
        if key not in self.measured and len(self.measured) < MEASURE_LIMIT and smaller is not None:
            share = smaller.train.batch_size / config.train.batch_size
            seconds = seconds_per_step(smaller, built, seconds=MEASURE_SECONDS) / share
            self.measured[key] = seconds, work
        if key in self.measured:
            return self.measured[key][0], smaller is config
        if not self.measured:
            return None, False
        seconds = sum(seconds for seconds, _ in self.measured.values())
        return work * seconds / sum(work for _, work in self.measured.values()), False


def _fewer_rows(config: RunConfig, work: float) -> RunConfig | None:
    """Return the run with as many rows a batch as a CPU is measured with, or None for too few."""
    if work <= MEASURE_MACS or choose_device(config.train).type != "cpu":
        return config
    rows = int(config.train.batch_size * MEASURE_MACS / work)
    if rows < 1 or config.train.tokens_per_batch is not None:
        return None
    train = dataclasses.replace(config.train, batch_size=rows, accumulate=1)
    return dataclasses.replace(config, train=train)
