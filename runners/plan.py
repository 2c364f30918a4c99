"""What a sweep would do, without doing it: ``python -m runners.sweep … --dry-run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from runners.build import Built
from runners.expand import PlannedRun
from runners.progress import duration
from runners.rundirectory import RunDirectory
from runners.sizes import describe_model, mean_lengths, seconds_per_step

MEASURE_SECONDS = 2.0
"""Time that the updates of one setting are measured over."""
MEASURE_LIMIT = 8
"""Settings that are measured; the time of further ones is scaled by multiply-accumulates."""


def print_plan(
    planned: Sequence[PlannedRun],
    built: Mapping[str, Built],
    *,
    workers: int,
    console: Console,
) -> None:
    """Print the number of runs, and sizes and an estimate of time for each setting.

    The time is that of training, from a few updates on this machine, one run at a time; scoring is
    not in it. Nothing is written.
    """
    settings: dict[str, list[PlannedRun]] = {}
    for run in planned:
        settings.setdefault(run.hash, []).append(run)
    rates: list[float] = []  # seconds per multiply-accumulate
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "runs", "parameters", "MACs/token", "steps", "s/step", "train time"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    total = 0.0
    for digest, runs in settings.items():
        first = runs[0]
        model = describe_model(built[digest])
        work = model["macs_per_token"] * _tokens_per_step(first, built[digest])
        mark = ""
        if len(rates) < MEASURE_LIMIT:
            step = seconds_per_step(first.config, built[digest], seconds=MEASURE_SECONDS)
            rates.append(step / work)
        else:
            step, mark = work * sum(rates) / len(rates), "~"
        left = [run for run in runs if RunDirectory(run.directory).status() != "done"]
        seconds = step * first.config.train.steps
        total += seconds * len(left)
        name = " ".join(
            [first.variant, *(f"{key}={value}" for key, value in first.parameters.items())]
        )
        table.add_row(
            name,
            str(len(runs)),
            f"{model['parameters']:,}",
            f"{model['macs_per_token']:,}",
            f"{first.config.train.steps:,}",
            f"{mark}{step:.3f}",
            f"{mark}{duration(seconds)}",
        )
    done = sum(RunDirectory(run.directory).status() == "done" for run in planned)
    console.print(table)
    console.print(
        f"{len(planned)} runs, {done} of them done; about {duration(total / workers)} of training "
        f"with {workers} at a time (measured: up to {MEASURE_SECONDS:g} s of updates of "
        f"{len(rates)} of {len(settings)} settings on this machine, one after another; "
        "scoring comes on top)",
        highlight=False,
        soft_wrap=True,
    )


def _tokens_per_step(run: PlannedRun, built: Built) -> float:
    train = run.config.train
    if train.tokens_per_batch is not None:
        return train.tokens_per_batch
    return train.batch_size * sum(mean_lengths(built))
