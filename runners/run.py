"""One run in this process, from wherever its directory stands to its result.

What the loop asks of its surroundings is joined here: checkpoints, the journal, scoring, selected
weights. Where several ranks train, all of them come through here in step, and rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runners.config.schema import ConfigError
from runners.process import ranks, signals
from runners.process.lease import Lease, Locked
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory, json_line
from runners.process.signals import Stopped
from runners.reporting.run_result import ModelSummary, RunResult, TaskSummary, from_plain
from runners.scoring.scorer import Scorer
from runners.scoring.splits import Evaluation
from runners.training import parallel
from runners.training.agreement import Agreement
from runners.training.cost import describe_model, macs_per_token
from runners.training.experiment import (
    build_model,
    train_columns,
)
from runners.training.journal import Clock, Journal, Lap, Progress
from runners.training.loop import Loop, NonFinite, fit, seed_everything
from runners.training.prepared import Prepared, prepare
from runners.training.snapshots import find_snapshot, resume, save_snapshot
from runners.training.telemetry import describe_row
from tasks.base.metrics import selection_score
from tasks.base.storage import write_atomically, write_json

logger = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""Time that a run waits for a process that works on its directory and may be just ending."""


def run(
    directory: Path,
    *,
    stop: signals.Stop,
    on_progress: Progress = lambda message: None,
    world: World = World(),  # noqa: B008 - frozen
) -> str:
    """Train and score the run of a directory, from wherever it stands; return ``done`` or
    ``failed``.

    Args:
        directory: has a ``config.yaml`` and a ``run.json``; on a disk that all ranks share.
        stop: asked before every step and every batch of an evaluation.
        on_progress: gets a message now and then: phase, step, steps, loss, tokens per second; or
            ``{"event": "notice", "message": …}`` about a damaged checkpoint.
        world: this process's place among the ranks.

    Raises:
        Stopped: a stop was asked for and the state is saved, another rank is gone, or another
            process has taken the directory over (``Lost``).
        Locked: another process works on the directory.
        ConfigError: the directory's config is unreadable, or not the one its checkpoints are of.
    """
    files = RunDirectory(directory)
    with _hold(directory, stop, on_progress, world) as lease:
        if world.share(files.result.is_file()):
            return "done"
        if world.is_first:
            files.error.unlink(missing_ok=True)
        clock = Clock()
        active: Training | None = None
        try:
            prepared = prepare(files, Agreement(world, stop, lease))
            with Journal(
                files, clock, writes=world.is_first, on_progress=on_progress, lease=lease
            ) as journal:
                active = Training(prepared, journal)
                active.train()
                active.score()
        except ConfigError:
            raise
        except (NonFinite, OSError, RuntimeError, ValueError) as error:
            step = None if active is None else active.loop.position.step
            if lease is not None:
                lease.confirm()  # if it is lost, that is why, and the directory another one's
            _fail(files, error, step=step, world=world)
            return "failed"
    return "done"


@contextlib.contextmanager
def _hold(
    directory: Path, stop: signals.Stop, on_progress: Progress, world: World
) -> Iterator[Lease | None]:
    """Hold the lease of a directory on rank 0; raise what stands in the way on every rank."""

    def say(text: str) -> None:
        logger.info(text)
        on_progress({"event": "notice", "message": text})

    with contextlib.ExitStack() as stack:
        lease: Lease | None = None
        problem: Locked | Stopped | None = None
        if world.is_first:
            lease = Lease(
                directory,
                wait=WAIT_SECONDS,
                say=say,
                should_stop=lambda: stop.requested,
                on_lost=stop.request,
            )
            try:
                stack.enter_context(lease)
            except (Locked, Stopped) as error:
                problem = error
        told = world.share(None if problem is None else (type(problem), str(problem)))
        if told is not None:
            kind, text = told
            raise problem or kind(text)
        yield lease


def _fail(files: RunDirectory, error: Exception, *, step: int | None, world: World) -> None:
    """Record why the run has failed, or raise Stopped if another rank has just gone.

    What a rank raises because the connection to another one broke is not the reason: that is what
    the other one has left in the store, if it could.
    """
    message = str(error) or repr(error)
    if world.size > 1:
        reported = world.reported()
        if ranks.is_lost(error) and reported is None:
            raise Stopped(
                "lost another rank, which was killed or whose machine is gone; the run continues "
                "from its last checkpoint"
            ) from error
        if reported is not None:
            message = reported
        else:
            logger.exception("rank %d has failed", world.rank)
            world.report(message)
    else:
        logger.exception("the run has failed")
    if world.is_first:
        files.fail(message, step=step)


class Training:
    """A model in training in this process, and what the loop asks of its surroundings
    (``loop.Host``).

    Args:
        prepared: the run.
        journal: where it writes what happens.

    Raises:
        ConfigError: the directory's checkpoints are of another config.
        ValueError: every checkpoint is damaged, or the ranks do not see the same ones.
    """

    def __init__(self, prepared: Prepared, journal: Journal) -> None:
        self.prepared, self.journal = prepared, journal
        self.config, self.built = prepared.config, prepared.built
        self.world, self.agreement = prepared.world, prepared.agreement
        self.scorer = Scorer(
            self.config,
            self.built,
            device=prepared.device,
            agreement=self.agreement,
            journal=journal,
        )
        self.best: dict[str, torch.Tensor] | None = None
        checkpoint = find_snapshot(prepared, warn=journal.notice)
        seed_everything(self.config.seed)
        self.model = build_model(self.built.model_config, prepared.device)
        self.loop = Loop(
            self.config.train,
            objective=self.built.objective,
            model=self.model,
            columns=train_columns(self.built.objective),
            seed=self.config.seed,
            d_model=self.built.model_config.d_model,
            device=prepared.device,
            world=self.world,
        )
        if checkpoint is not None:
            self.best = resume(checkpoint, self.loop)
        journal.open(
            size=0 if checkpoint is None else checkpoint.state["metrics_bytes"],
            step=self.loop.position.step,
            tensorboard=self.config.train.tensorboard,
        )
        tokens_seen = self.loop.position.tokens_seen
        journal.start_training(tokens_seen)
        self._since_start = Lap(journal.clock, tokens_seen)
        self._since_row = Lap(journal.clock, tokens_seen)

    def train(self) -> None:
        """Train to the last step.

        Raises:
            Stopped: a stop was asked for, and the state is saved.
            NonFinite: the loss is not a number.
        """
        try:
            fit(self.loop, self, evaluate_interval=self.config.evaluate.interval)
        finally:
            self.journal.count_training(self.loop.position.tokens_seen)

    def score(self) -> None:
        """Score the selected weights on every split and depth, and write the result."""
        selects = self.config.selection_split is not None
        self.scorer.at_the_end(
            self.model,
            self.best if selects else None,
            step=self.loop.position.step,
            write=self._write_result,
        )

    def _write_result(self, evaluations: list[Evaluation]) -> None:
        if self.agreement.lease is not None:
            self.agreement.lease.confirm()
        position, config, files = self.loop.position, self.config, self.prepared.files
        selects = config.selection_split is not None
        own = [evaluation for evaluation in evaluations if evaluation.score.is_default_depth]
        kind = self.built.task.kind
        rows = [json_line(row) for each in own for row in each.prediction_rows(kind)]
        write_atomically(files.predictions, b"".join(rows))
        self.journal.write_timings()
        step = position.best_step if selects else position.step
        assert step is not None  # what selects has been evaluated at the last step
        result = RunResult(
            **vars(self.prepared.record),
            select=config.select,
            step=step,
            task=self._describe_task(),
            model=from_plain(ModelSummary, describe_model(self.built)),
            tokens_seen=position.tokens_seen,
            notes=[note for each in own if (note := each.note())],
            scores=[each.score for each in evaluations],
        )
        write_json(files.result, result.to_json())

    def _describe_task(self) -> TaskSummary:
        headline = self.built.final_splits(self.config)[-1]
        return from_plain(TaskSummary, self.built.task.describe() | {"headline_split": headline})

    # --- what the loop asks for ---------------------------------------------------------

    @property
    def stop_requested(self) -> bool:
        return self.agreement.stop_requested()

    def evaluate(self) -> float | None:
        """Score the interval splits and log their metrics; return the selecting split's score."""
        step = self.loop.position.step
        selected = None
        for split, metrics in self.scorer.on_the_way(self.model, step=step).items():
            self.journal.append({"step": step, "split": split, "metrics": metrics})
            if split == self.config.selection_split:
                selected = selection_score(self.built.task.kind, metrics)
        return selected

    def keep_best(self) -> None:
        self.best = parallel.full_weights(self.model)

    def log(self, row: dict[str, Any]) -> None:
        if self.built.objective.logs_details:
            lap = self._since_row.restart(self.loop.position.tokens_seen)
            row = row | describe_row(
                row, self.loop, lap=lap, macs_per_token=macs_per_token(self.built)
            )
        self.journal.append(row)

    def save(self) -> None:
        save_snapshot(self.prepared, self.loop, best=self.best, metrics_bytes=self.journal.flush())
        self.journal.count_training(self.loop.position.tokens_seen)
        self.journal.write_timings()

    def progress(self, values: dict[str, float]) -> None:
        position = self.loop.position
        seconds, tokens = self._since_start.read(position.tokens_seen)
        self.journal.progress(
            phase="train",
            step=position.step,
            steps=self.config.train.steps,
            loss=values["loss"],
            tokens_per_second=tokens / seconds,
        )
