"""Estimate what a sweep costs on a CPU before it runs: training, scoring and data.

For each setting some training steps are timed, and some batches of every evaluation that the run
will do, at every depth. Answers are decoded to the length of the longest target of their batch,
whatever the untrained model says, as a model that answers right decodes them: one that does not
end takes longer, and what a wrong end makes necessary (decoding again without it) is left out.
Data is drawn once by each worker. All times are of the processor, so that other programs count
little; ``--seconds`` bounds the steps that are timed of each setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moeut.decoding import evaluation_mode
from runners.bench.command import add_json_option, check_counts, command_line, deliver
from runners.bench.small_runs import make_loop
from runners.bench.timing import describe_machine
from runners.config.grid import PlannedRun, expand, read_sweep
from runners.config.schema import RunConfig
from runners.process.environment import prepare_process
from runners.reporting.tables import Table
from runners.scoring.answers import Answerer
from runners.scoring.splits import split_scorer
from runners.training.experiment import Built, build
from runners.training.lengths import train_columns
from runners.training.objective import AnswerObjective
from tasks.base.task import Example, select_rows

WARM_UP = 3
"""Steps before those that are timed."""
DEVICE = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of processor time of one run of a setting."""

    setting: str
    runs: int
    step: float
    """One update."""
    training: float
    on_the_way: float
    """All evaluations in training."""
    at_the_end: float
    """All splits at all depths."""

    @property
    def total(self) -> float:
        """All runs of the setting, without their data."""
        return self.runs * (self.training + self.on_the_way + self.at_the_end)


class PatientAnswerer(Answerer):
    """Decodes every row to its batch's limit, as if none ended before."""

    def _greedy(
        self, source: torch.Tensor, mask: torch.Tensor, *, limit: int, suppress_eos: bool = True
    ) -> list[Any]:
        return super()._greedy(source, mask, limit=limit, suppress_eos=True)


def settings_of(sweep: Path, overrides: Sequence[str]) -> list[list[PlannedRun]]:
    """Return the runs of a sweep by setting: those that differ in their seed alone."""
    read = read_sweep(sweep, (*overrides, "train.device=cpu"))
    found: dict[str, list[PlannedRun]] = {}
    for run in expand(read, data_hash=lambda task: ""):
        found.setdefault(run.hash, []).append(run)
    return list(found.values())


def measure_setting(runs: Sequence[PlannedRun], *, seconds: float, batches: int) -> Cost:
    """Return the cost of a run of a setting, from a part of its steps and evaluations."""
    first = runs[0]
    config, built = first.config, build(first.config)
    prepare_process(config.train, DEVICE)
    loop = make_loop(config, DEVICE, replayed=False)
    for _ in range(WARM_UP):
        loop.advance()
    step = _mean_seconds(loop.advance, seconds)
    scored = Scoring(config, built, loop.model, batches)
    steps, interval = built.config.train.steps, config.evaluate.interval
    on_the_way = 0.0
    if interval:
        each = sum(scored.seconds(split) for split in built.interval_splits(config))
        on_the_way = -(-steps // interval) * each
    return Cost(
        setting=" ".join([first.variant, *(f"{k}={v}" for k, v in first.parameters.items())]),
        runs=len(runs),
        step=step,
        training=steps * step,
        on_the_way=on_the_way,
        at_the_end=sum(map(scored.seconds_at_every_depth, built.final_splits(config))),
    )


@dataclass
class Scoring:
    """Times the evaluations of a run on a part of their batches."""

    config: RunConfig
    built: Built
    model: Any
    batches: int
    """Batches that are timed of each split and depth."""

    def seconds_at_every_depth(self, split: str) -> float:
        """Return the time of scoring a split as is done at the end."""
        depths = self.built.depths(self.config)
        is_curve = self.config.evaluate.repeats == "auto" and len(depths) > 1
        total = self.seconds(split)
        for depth in depths[1:]:
            total += self.seconds(split, depth=depth, of_curve=is_curve)
        return total

    def seconds(self, split: str, *, depth: Any = None, of_curve: bool = False) -> float:
        """Return the time of scoring a split once, at a depth or the model's own."""
        scorer = split_scorer(self.built.objective)(
            model=self.model, built=self.built, config=self.config.evaluate, device=DEVICE
        )
        objective = self.built.objective
        if not isinstance(objective, AnswerObjective) or objective.names_classes:
            return _timed(lambda: scorer.score(split, repeats=depth, of_curve=of_curve))
        rows = select_rows(self.built.task.split(split), self.config.evaluate.rows_of(split))
        share = min(1.0, scorer.few / len(rows)) if of_curve else 1.0
        answerer = PatientAnswerer(
            self.model,
            objective,
            device=DEVICE,
            num_repeats=tuple(depth) if isinstance(depth, list) else depth,
            batch_size=self.config.evaluate.batch_size,
        )
        chosen = list(self._some(rows))
        with evaluation_mode(self.model), torch.inference_mode():
            taken = sum(_timed(functools.partial(answerer.decode, some)) for some in chosen)
        return share * taken * len(rows) / sum(map(len, chosen))

    def _some(self, rows: Sequence[Example]) -> Iterator[list[Example]]:
        """Yield batches of rows of similar length, evenly spread over all lengths."""
        ordered = sorted(rows, key=lambda row: len(row.source))
        size = self.config.evaluate.batch_size
        starts = range(0, len(ordered), size)
        count = min(self.batches, len(starts))
        for number in range(count):
            begin = starts[(2 * number + 1) * len(starts) // (2 * count)]
            yield ordered[begin : begin + size]


def _timed(function: Callable[[], object]) -> float:
    """Return the processor time of a call, in seconds."""
    start = time.process_time()
    function()
    return time.process_time() - start


def _mean_seconds(function: Callable[[], object], seconds: float) -> float:
    """Return the processor time of a call, over calls of some ``seconds`` and three at least."""
    start, calls = time.process_time(), 0
    while calls < 3 or time.process_time() - start < seconds:
        function()
        calls += 1
    return (time.process_time() - start) / calls


def data_seconds(config: RunConfig) -> float:
    """Return the processor time of the rows of a run; none is left where they are in memory."""

    def draw() -> None:
        built = build(config)
        train_columns(built.objective)

    return _timed(draw)


def measure(sweep: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the cost of each setting of a sweep and the minutes of all."""
    settings = settings_of(sweep, options.set)
    data = data_seconds(settings[0][0].config)
    costs = [
        measure_setting(runs, seconds=options.seconds, batches=options.batches) for runs in settings
    ]
    total = sum(cost.total for cost in costs) + options.workers * data
    return {
        "sweep": str(sweep),
        "data_seconds": data,
        "minutes": total / 60,
        "minutes_each": total / 60 / options.workers,
        "settings": [dataclasses.asdict(cost) for cost in costs],
    }


def table(found: dict[str, Any], workers: int) -> Table:
    """Return what a sweep costs as a table."""
    rows = [
        [
            each["setting"],
            str(each["runs"]),
            f"{1e3 * each['step']:.1f}",
            *(f"{each[name] / 60:.2f}" for name in ("training", "on_the_way", "at_the_end")),
        ]
        for each in found["settings"]
    ]
    return Table(
        name="cost",
        title=f"{found['sweep']}: minutes of processor time of one run",
        columns=["setting", "runs", "ms/step", "training", "on the way", "at the end"],
        rows=rows,
        notes=[
            f"data: {found['data_seconds']:.1f} s for each worker",
            f"all runs: {found['minutes']:.0f} minutes of processor time, "
            f"{found['minutes_each']:.0f} on each of {workers} cores",
        ],
    )


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command to ``runners.bench``."""
    parser = subparsers.add_parser(
        name,
        help="what a sweep costs on a CPU before it runs",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="FILE", help="files of sweeps")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, as of a sweep"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed steps a setting")
    parser.add_argument("--batches", type=int, default=3, help="timed of each split and depth")
    parser.add_argument("--workers", type=int, default=2, help="cores that share the runs")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure the sweeps, show a table of each and write the result."""
    check_counts(options, "batches", "workers")
    machine = describe_machine(DEVICE)
    found = [measure(sweep, options) for sweep in options.sweeps]
    result = {
        "command": command_line(options),
        "machine": machine,
        "sweeps": found,
    }
    heading = f"{machine['cpu']}, load {machine['load_average']}"
    deliver(result, options, heading, [table(each, options.workers) for each in found])
    return 0
