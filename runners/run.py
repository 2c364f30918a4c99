"""One run that is laid out in its directory: ``python -m runners.run DIRECTORY``.

From wherever the directory stands to its result: begun, continued from the last whole checkpoint,
or found done. What says which run it is (``config.yaml``, ``run.json``) is read and never written,
so that this is the command of whatever executes the runs of a sweep elsewhere. Under ``torchrun``
it runs on several devices, as ``runners.train`` describes. Exit status: 0 done, 1 failed, 2 bad
input, 75 stopped but resumable or another process at work, 130 interrupted by the user.
"""

from __future__ import annotations

from runners.process.start import begin, silent_but_first

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from runners.config.schema import ConfigError, RunConfig
from runners.process import environment, ranks, signals
from runners.process.generators import seed_everything
from runners.process.messages import Notice, OnProgress, TrainingProgress
from runners.process.ranks import Agreement, World, check_together, hold
from runners.process.run_directory import RunDirectory, RunRecord, json_line
from runners.reporting.run_result import RunResult, TaskSummary, from_plain
from runners.scoring.scorer import Scorer
from runners.scoring.splits import Evaluation
from runners.training import parallel
from runners.training.cost import describe_model
from runners.training.experiment import Built, build, build_model
from runners.training.foreground import check_start, execute
from runners.training.journal import Clock, Journal, Lap
from runners.training.lengths import tokens_per_step, train_columns
from runners.training.loop import Loop, NonFinite, fit
from runners.training.operations import macs_per_token
from runners.training.snapshots import Snapshots, resume
from tasks.base.command_line import BAD_INPUT, Parser, exit_with
from tasks.base.metrics import selection_score
from tasks.base.storage import write_atomically, write_json

if TYPE_CHECKING:
    from runners.training.graphs import Capture
    from runners.training.trackers import Tracker

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
                with active.snapshots.written():
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
    with silent_but_first():
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
        return execute(run, files, world, retry_failed=options.retry_failed)

    return ranks.run_together(work)


def _check_directory(directory: Path, world: World) -> RunDirectory:
    files = RunDirectory(directory)
    check_start(files.read_config(), world)
    files.read_record()
    return files


# --- from the first step to the result --------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What a directory holds, checked, and the process made ready for it."""

    files: RunDirectory
    config: RunConfig
    record: RunRecord
    """Which run of which sweep it is."""
    built: Built
    """What the config describes."""
    data_hash: str
    device: torch.device
    agreement: Agreement
    notices: tuple[str, ...] = ()
    """What is to be said before the run begins."""

    @property
    def world(self) -> World:
        """This process's place among the ranks."""
        return self.agreement.world


def prepare(files: RunDirectory, agreement: Agreement) -> Prepared:
    """Read a directory, choose the device, build the task, and write the files beside the config.

    Raises:
        ConfigError: config and data are not those of the run's hash.
    """
    world = agreement.world
    config, record = files.read_config(), files.read_record()
    device = environment.choose_device(
        config.train, local_rank=world.local_rank if world.size > 1 else None
    )
    environment.prepare_process(config.train, device)
    built = build(config)
    data_hash = built.task.data_hash()
    found = config.hash(data_hash)
    if found != record.hash:
        raise ConfigError(
            f"{files.config}: its config and data have the hash {found}, but the run is "
            f"{record.hash}: the file or the data was changed; plan the run anew"
        )
    notices: list[str] = []
    if world.is_first:
        path = files.path / "env.json"
        notices = environment.record_start(path, config, device, num_ranks=world.size)
        built.task.save_files(files.path)
    return Prepared(
        files, built.config, record, built, data_hash, device, agreement, tuple(notices)
    )


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
        self.snapshots = Snapshots(
            folder=prepared.files.checkpoints,
            run_hash=prepared.record.hash,
            identity=self.config.identity(prepared.data_hash),
            model_config=self.built.model_config,
            agreement=self.agreement,
        )
        checkpoint = self.snapshots.find(warn=journal.notice)
        seed_everything(self.config.seed)
        model = build_model(self.built.model_config, prepared.device)
        self.loop = Loop(
            self.config.train,
            objective=self.built.objective,
            model=model,
            columns=train_columns(self.built.objective),
            seed=self.config.seed,
            d_model=self.built.model_config.d_model,
            device=prepared.device,
            world=self.world,
            capture=self._capture(model),
        )
        if checkpoint is not None:
            self.best = resume(checkpoint, self.loop)
        journal.open(
            size=0 if checkpoint is None else checkpoint.state["metrics_bytes"],
            step=self.loop.position.step,
            tensorboard=self.config.train.tensorboard,
            open_trackers=self._open_trackers if self._is_tracked else None,
        )
        tokens_seen = self.loop.position.tokens_seen
        journal.start_training(tokens_seen)
        self._since_start = Lap(journal.clock, tokens_seen)
        self._since_row = Lap(journal.clock, tokens_seen)

    def _capture(self, model: torch.nn.Module) -> Capture | None:
        """Return what records training steps, if they are to be replayed."""
        config = self.config.train
        if config.cuda_graph is False:
            return None
        from runners.training.graphs import capture_of

        tokens = tokens_per_step(config, self.built.objective)
        with self.config.locating("train"):
            return capture_of(
                *(config, model, self.prepared.device, self.world),
                macs_per_step=self._macs_per_token() * tokens,
            )

    def _macs_per_token(self) -> int:
        return macs_per_token(self.built.model_config, self.built.objective)

    @property
    def _is_tracked(self) -> bool:
        return self.config.train.wandb or self.config.train.trackio

    def _open_trackers(self, warn: Callable[[str], None]) -> list[Tracker]:
        from runners.training.trackers import open_trackers

        prepared = self.prepared
        return open_trackers(prepared.files.path, self.config, prepared.record, warn)

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
            self.loop.scored,
            self.best if selects else None,
            step=self.loop.position.step,
            write=self._write_result,
        )

    def _write_result(self, evaluations: list[Evaluation]) -> None:
        self.snapshots.wait()
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
            ema=config.train.ema or None,
            step=step,
            task=self._describe_task(),
            model=describe_model(self.built),
            tokens_seen=position.tokens_seen,
            notes=[
                *self._misses(),
                *(note for each in own if (note := each.note())),
            ],
            scores=[each.score for each in evaluations],
        )
        write_json(files.result, result.to_json())

    def _misses(self) -> list[str]:
        """Return which budgets of the run are not met, as the plan says it."""
        if not self.built.unmet:
            return []
        from runners.config.labels import setting_name  # which most runs do without

        name = setting_name(self.prepared.record.variant, self.prepared.record.parameters)
        return [f"{name}: {miss}" for miss in self.built.unmet]

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
        for split, metrics in self.scorer.on_the_way(self.loop.scored, step=step).items():
            self.journal.append({"step": step, "split": split, "metrics": metrics})
            if split == self.config.selection_split:
                selected = selection_score(self.built.task.kind, metrics)
        return selected

    def keep_best(self) -> None:
        self.best = parallel.full_weights(self.loop.scored)

    def log(self, row: dict[str, Any]) -> None:
        if self.built.objective.logs_details:
            from runners.training.telemetry import describe_row

            lap = self._since_row.restart(self.loop.position.tokens_seen)
            row = row | describe_row(
                row,
                self.loop,
                lap=lap,
                macs_per_token=self._macs_per_token(),
            )
        self.journal.append(row)

    def save(self) -> None:
        self.snapshots.save(self.loop, best=self.best, metrics_bytes=self.journal.flush())
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
