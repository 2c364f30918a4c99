"""What a sweep would do, without doing it: ``python -m runners.sweep … --dry-run``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from runners.config.grid import PlannedRun
from runners.config.labels import setting_name
from runners.config.schema import RunConfig
from runners.process.environment import choose_device
from runners.process.run_directory import RunDirectory
from runners.training.cost import describe_model, seconds_per_step
from runners.training.experiment import Built
from runners.training.lengths import tokens_per_step
from runners.training.operations import training_flops_per_token
from tasks.base.console import WholeTable, duration, say

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
"""Settings that are measured; the time of further ones is scaled by operations of an update."""
MEASURE_FLOPS = 6e11
"""Operations of an update that a CPU is measured with, some ten seconds: of a larger batch fewer
rows are read, and of a larger row no time is given."""


@dataclass(frozen=True)
class _Line:
    """One line of the plan: the runs of one setting."""

    runs: Sequence[PlannedRun]
    built: Built
    step_seconds: float | None
    """Time of an update; None where it is not known."""
    is_measured: bool

    @property
    def name(self) -> str:
        """The variant, and its values of a grid."""
        return setting_name(self.runs[0].variant, self.runs[0].parameters)

    @property
    def train_seconds(self) -> float | None:
        """Time of training one run."""
        steps = self.runs[0].config.train.steps
        return None if self.step_seconds is None else self.step_seconds * steps

    @property
    def num_left(self) -> int:
        """Runs that are not done."""
        return sum(RunDirectory(run.directory).status() != "done" for run in self.runs)

    def cells(self) -> list[str]:
        """Return the line's cells, in the order of ``_COLUMNS``."""
        first, model = self.runs[0], describe_model(self.built)
        mark = "" if self.is_measured else "~"
        step, total = self.step_seconds, self.train_seconds
        return [
            self.name,
            str(len(self.runs)),
            f"{model.parameters:,}",
            f"{model.used_parameters:,}",
            f"{model.macs_per_token:,}",
            f"{model.training_flops_per_token:,}",
            f"{model.cache_bytes_per_token:,}",
            "–" if model.activation_bytes is None else f"{model.activation_bytes:,}",
            f"{first.config.train.steps:,}",
            "–" if step is None else f"{mark}{step:.3f}",
            "–" if total is None else f"{mark}{duration(total)}",
        ]


_COLUMNS = (
    "setting",
    "runs",
    "parameters",
    "used parameters",
    "MACs/token",
    "training FLOPs/token",
    "cache bytes/token",
    "activation bytes/step",
    "steps",
    "s/step",
    "train time",
)


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
    not in it. There is none where the text of a hub is not packed yet. No run is written.

    Args:
        planned: The runs.
        built: What they describe, by their hash.
        ours: Variants that the paper does not have.
        workers: Runs at a time.
        console: Where to print.
    """
    settings: dict[str, list[PlannedRun]] = {}
    for run in planned:
        settings.setdefault(run.hash, []).append(run)
    estimate = _Estimate()
    table = WholeTable(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "setting" else "right")
    lines = []
    for digest, runs in settings.items():
        seconds = estimate.seconds_per_step(runs[0].config, built[digest])
        lines.append(_Line(runs, built[digest], *seconds))
        table.add_row(*lines[-1].cells())
    console.print(table)
    marked = [name for name in ours if any(run.variant == name for run in planned)]
    if marked:
        say(console, f"ours, and not among the paper's: {', '.join(marked)}")
    for line in lines:
        for miss in line.built.unmet:
            say(console, f"{line.name}: {miss}")
    missing = dict.fromkeys(each.missing for each in built.values() if each.missing)
    if missing:
        say(console, "\n".join([f"{len(planned)} runs, none of which can start:", *missing]))
    else:
        say(console, _summary(lines, workers, num_measured=len(estimate.measured)))


def _summary(lines: Sequence[_Line], workers: int, *, num_measured: int) -> str:
    num_runs = sum(len(line.runs) for line in lines)
    num_left = sum(line.num_left for line in lines)
    total = sum((line.train_seconds or 0.0) * line.num_left for line in lines)
    unknown = sum(line.step_seconds is None for line in lines)
    return (
        f"{num_runs} runs, {num_runs - num_left} of them done; about {duration(total / workers)} "
        f"of training with {workers} at a time (measured: up to {MEASURE_SECONDS:g} s of updates "
        f"of each of {num_measured} settings on this machine, one after another; others, marked ~, "
        "in proportion to training FLOPs; scoring comes on top)"
        + (f"; {unknown} settings are too large to be timed on this CPU" if unknown else "")
    )


class _Estimate:
    """Time of an update: measured once for all settings that cost the same, and a few of those."""

    def __init__(self) -> None:
        self.measured: dict[str, tuple[float, float]] = {}
        """What decides the cost → (seconds, floating-point operations) of an update."""

    def seconds_per_step(self, config: RunConfig, built: Built) -> tuple[float | None, bool]:
        """Return the seconds of an update, if they are known, and whether they were measured."""
        train = {name: getattr(config.train, name) for name in COSTLY}
        key = json.dumps([config.task, built.model_config.to_dict(), train], sort_keys=True)
        # Not those of a pass: models that carry a state train a part of the passes they score.
        flops = training_flops_per_token(config.train, built.model_config, built.objective)
        work = float(flops * tokens_per_step(config.train, built.objective))
        if built.missing:
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
    if work <= MEASURE_FLOPS or choose_device(config.train).type != "cpu":
        return config
    rows = int(config.train.batch_size * MEASURE_FLOPS / work)
    if rows < 1 or config.train.tokens_per_batch is not None:
        return None
    train = dataclasses.replace(config.train, batch_size=rows, accumulate=1)
    return dataclasses.replace(config, train=train)
