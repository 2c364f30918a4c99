"""One run that is laid out in its directory: ``python -m runners.run DIRECTORY``.

From wherever the directory stands to its result: begun, continued from the last whole checkpoint,
or found done. What says which run it is (``config.yaml``, ``run.json``) is read and never written,
so that this is the command of whatever executes the runs of a sweep elsewhere. Under ``torchrun``
it runs on several devices, as ``runners.train`` describes. Exit status: 0 done, 1 failed, 2 bad
input, 75 stopped but resumable or another process at work, 130 interrupted by the user.
"""

from __future__ import annotations

from runners.process.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # what follows takes seconds to import

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from runners.config.schema import ConfigError, RunConfig
from runners.process import environment, ranks, signals
from runners.process.messages import Notice, OnProgress, Progress, TrainingProgress
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory, json_line
from runners.process.signals import Stopped
from runners.reporting.run_result import RunResult, TaskSummary, from_plain
from runners.scoring.scorer import Scorer
from runners.scoring.splits import Evaluation
from runners.training import parallel
from runners.training.agreement import hold
from runners.training.cost import describe_model, macs_per_token
from runners.training.experiment import build_model, train_columns
from runners.training.journal import Clock, Journal, Lap
from runners.training.loop import Loop, NonFinite, fit, seed_everything
from runners.training.prepared import Prepared, prepare
from runners.training.snapshots import find_snapshot, resume, save_snapshot
from runners.training.telemetry import describe_row
from tasks.base.command_line import BAD_INPUT, DONE, FAILED, RESUMABLE, Parser, exit_with
from tasks.base.lease import Locked
from tasks.base.metrics import selection_score
from tasks.base.storage import why_not_written, write_atomically, write_json

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def run(
    directory: Path,
    *,
    stop: signals.Stop,
    on_progress: OnProgress = lambda message: None,
    world: World = World(),  # noqa: B008 - frozen
) -> Literal["done", "failed"]:
    """Train and score the run of a directory, from wherever it stands, and return how it ended.

    Args:
        directory: has a ``config.yaml`` and a ``run.json``; on a disk that all ranks share.
        stop: asked before every step and every batch of an evaluation.
        on_progress: gets a message now and then.
        world: this process's place among the ranks.

    Raises:
        Stopped: a stop was asked for and the state is saved, another rank is gone, or another
            process has taken the directory over.
        Locked: another process works on the directory.
        OSError: the directory cannot be written to.
        ConfigError: the directory's config is unreadable, or not the one its checkpoints are of.
    """
    files = RunDirectory(directory)

    def say(text: str) -> None:
        logger.info(text)
        on_progress(Notice(text))

    with hold(directory, stop, world, say=say) as agreement:
        if world.share(files.result.is_file()):
            return "done"
        if world.is_first:
            files.error.unlink(missing_ok=True)
        clock, lease = Clock(), agreement.lease
        active: Training | None = None
        try:
            prepared = prepare(files, agreement)
            with Journal(
                files, clock, writes=world.is_first, on_progress=on_progress, lease=lease
            ) as journal:
                for notice in prepared.notices:
                    journal.notice(notice)
                active = Training(prepared, journal)
                active.train()
                active.score()
        except ConfigError:
            raise
        except (NonFinite, OSError, RuntimeError, ValueError) as error:
            step = None if active is None else active.loop.position.step
            agreement.record_failure(files, error, step=step)
            return "failed"
    return "done"


# --- the command ------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    with ranks.silent_but_first():
        parser = Parser(
            prog="python -m runners.run",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("directory", type=Path, help="directory of a run that was planned")
        parser.add_argument(
            "--retry-failed", action="store_true", help="try again if it has failed"
        )
        options = parser.parse_args(arguments)

    def work(world: World) -> int:
        files = check_together(world, lambda: _check_directory(options.directory, world))
        if files is None:
            return BAD_INPUT
        return execute(files, world, retry_failed=options.retry_failed)

    return ranks.run_together(work)


def _check_directory(directory: Path, world: World) -> RunDirectory:
    files = RunDirectory(directory)
    check_start(files.read_config(), world)
    files.read_record()
    return files


def check_start(config: RunConfig, world: World) -> None:
    """Check what a run needs of this machine and of its ranks before anything is written.

    Raises:
        ValueError: a batch that the ranks cannot share, or a device or package that is not there.
    """
    ranks.check_batch(config, world.size)
    environment.check_packages(config)
    environment.check_device(config, local_rank=world.local_rank if world.size > 1 else None)


def check_together(world: World, check: Callable[[], Result]) -> Result | None:
    """Return what ``check`` does, or None on every rank if it raised ValueError on any of them.

    Rank 0 prints the error, the first one of several.
    """
    value, problem = None, None
    try:
        value = check()
    except ValueError as error:
        problem = str(error)
    problems = [text for text in world.gather(problem) if text is not None]
    if problems and world.is_first:
        print(problems[0], file=sys.stderr)
    return None if problems else value


def execute(
    files: RunDirectory,
    world: World,
    *,
    retry_failed: bool,
    lay_out: Callable[[], None] = lambda: None,
) -> int:
    """Execute a run, print how far it is and its result, and return the exit status.

    The status is the same on every rank. What is said is said by rank 0 alone.

    Args:
        files: the directory, checked.
        world: this process's place among the ranks.
        retry_failed: whether to try again what has failed.
        lay_out: writes what the directory lacks before the run begins.
    """

    def say(text: object, *, error: bool = False) -> None:
        if world.is_first:
            print(text, file=sys.stderr if error else sys.stdout, flush=True)

    before = world.share(files.status())
    if before == "failed" and not retry_failed:
        say(f"{files.path}: has failed: {files.failure()}; try again with --retry-failed")
        return FAILED
    say(f"{files.path}: {before}")
    problem = None
    if before != "done" and world.is_first:
        try:
            lay_out()
        except OSError as error:
            problem = why_not_written(error)
    problem = world.share(problem)
    if problem is not None:
        say(f"{files.path}: cannot be written: {problem}", error=True)
        return FAILED
    with signals.Stop(announce=world.is_first, restore=world.size == 1) as stop:
        try:
            status = run(files.path, stop=stop, on_progress=_print_progress, world=world)
        except Stopped as stopped:
            say(f"{stopped}; the same command continues", error=True)
            return stop.exit_status
        except Locked as error:
            say(error, error=True)
            return RESUMABLE
        except ConfigError as error:
            say(error, error=True)
            return BAD_INPUT
        except OSError as error:  # in the run itself it would be why the run has failed
            say(f"{files.path}: cannot be written: {why_not_written(error)}", error=True)
            return FAILED
    if status == "failed":
        say(files.failure(), error=True)
        return FAILED
    if world.is_first:
        _print_result(files)
    return DONE


def _print_progress(message: Progress) -> None:
    if isinstance(message, Notice):  # the log, which is on this terminal too, has it
        return
    if isinstance(message, TrainingProgress):
        text = f"loss {message.loss:.4f}  {message.tokens_per_second:,.0f} tokens/s"
    else:
        text = f"score {message.split} {message.rows}/{message.of_rows}"
    print(f"step {message.step}/{message.steps}  {text}", flush=True)


def _print_result(files: RunDirectory) -> None:
    result = RunResult.from_json(json.loads(files.result.read_text(encoding="utf-8")))
    for note in result.notes:
        print(note)
    for score in result.scores:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in score.metrics.items())
        print(f"{score.split} (depth {score.repeats}, {score.rows} rows): {metrics}")


# --- from the first step to the result --------------------------------------------------


class Training:
    """Trains and scores the model of a run: the ``Host`` of its loop.

    Args:
        prepared: the run.
        journal: gets what happens.

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
            model=describe_model(self.built),
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
            TrainingProgress(
                step=position.step,
                steps=self.config.train.steps,
                loss=values["loss"],
                tokens_per_second=tokens / seconds,
            )
        )


if __name__ == "__main__":
    exit_with(main)
