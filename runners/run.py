"""One run in this process, from wherever its directory stands to its result.

What the loop needs of the world is here: checkpoints, the log, scoring, timings, selected weights.
Where several ranks train, all of them come through here in step, and rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from runners.config.identity import config_hash, identity
from runners.config.schema import ConfigError
from runners.config.yaml_nodes import dump
from runners.process import environment, ranks, signals
from runners.process.checkpoint import Checkpoint, load_latest, save_checkpoint
from runners.process.lease import DirectoryLock, Locked
from runners.process.ranks import World
from runners.process.run_directory import MetricsLog, RunDirectory, write_json, write_json_lines
from runners.scoring.splits import Evaluation, evaluate_split
from runners.training import parallel
from runners.training.cost import describe_model, macs_per_token
from runners.training.experiment import (
    Built,
    build,
    build_model,
    describe_task,
    save_task_files,
    train_columns,
)
from runners.training.loop import Loop, NonFinite, Stopped, fit, seed_everything
from runners.training.telemetry import Stopwatch, expert_usage, peak_flops, perplexity
from runners.training.tensorboard import Board
from tasks.base.scoring import selection_score

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]
Result = TypeVar("Result")

PROGRESS_SECONDS = 0.5
"""Least time between two messages about a run's progress."""


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
        Stopped: a stop was asked for and the state is saved, or another rank is gone.
        Locked: another process works on the directory.
        ConfigError: the directory's config is unreadable, or not the one its checkpoints are of.
    """
    files = RunDirectory(directory)
    with _lock(directory, world):
        if world.share(files.result.is_file()):
            return "done"
        if world.is_first:
            files.error.unlink(missing_ok=True)
        active = None
        try:
            active = _Run(files, stop=stop, on_progress=on_progress, world=world)
            active.train()
            active.score()
        except (NonFinite, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            _fail(files, error, step=None if active is None else active.step, world=world)
            return "failed"
        finally:
            if active is not None:
                active.close()
    return "done"


@contextlib.contextmanager
def _lock(directory: Path, world: World) -> Iterator[None]:
    """Hold the lock of a directory on rank 0, or raise Locked on every rank."""
    with contextlib.ExitStack() as stack:
        problem = None
        if world.is_first:
            try:
                stack.enter_context(DirectoryLock(directory, wait=10.0))
            except Locked as error:
                problem = error
        message = world.share(None if problem is None else str(problem))
        if message is not None:
            raise problem or Locked(message)
        yield


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


@dataclass
class _Timings:
    """What ``timings.json`` holds; it adds up over interruptions."""

    wall_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    tokens_trained: int = 0
    """Tokens read in training, those of steps done twice counted twice."""
    starts: int = 0

    def to_dict(self) -> dict[str, Any]:
        speed = self.tokens_trained / self.train_seconds if self.train_seconds else 0.0
        return dataclasses.asdict(self) | {"tokens_per_second": speed}


class _Run:
    """A run in this process: what the loop asks of its surroundings (``loop.Host``)."""

    def __init__(
        self, files: RunDirectory, *, stop: signals.Stop, on_progress: Progress, world: World
    ) -> None:
        self.files, self.stop, self.world = files, stop, world
        self.on_progress = on_progress if world.is_first else lambda message: None
        self.timings = self._read_timings()
        self._began = time.monotonic()
        self._shown = 0.0
        self._metrics: MetricsLog | None = None
        self._board: Board | None = None
        self.loop: Loop | None = None
        self.best: dict[str, torch.Tensor] | None = None

        self.config = files.read_config()
        self.record = files.read_record()
        self.device = environment.choose_device(
            self.config.train, local_rank=world.local_rank if world.size > 1 else None
        )
        environment.prepare_process(self.config.train, self.device)
        self.built: Built = build(self.config)
        self.data_hash = self.built.task.data_hash()
        found = config_hash(self.config, self.data_hash)
        if found != self.record.hash:
            raise ConfigError(
                f"{files.config}: its config and data have the hash {found}, but the run is "
                f"{self.record.hash}: the file or the data was changed; plan the run anew"
            )
        if world.is_first:
            write_json(
                files.path / "env.json",
                environment.describe_environment(self.config, self.device)
                | ({"ranks": world.size} if world.size > 1 else {}),
            )
            save_task_files(self.built.task, files.path)
        self._write_timings()

    @property
    def step(self) -> int | None:
        """The last finished step; None before there is a model."""
        return None if self.loop is None else self.loop.position.step

    # --- training -----------------------------------------------------------------------

    def train(self) -> None:
        """Train from the last whole checkpoint, or from the start, to the last step."""
        config = self.config
        checkpoint = load_latest(self.files.checkpoints, warn=self._warn)
        if len(set(self.world.gather(None if checkpoint is None else checkpoint.step))) > 1:
            raise ValueError(
                f"{self.files.checkpoints}: the ranks find different checkpoints there; runs have "
                "to be on a disk that all of them share"
            )
        if checkpoint is not None:
            self._check_same_run(checkpoint)
        seed_everything(config.seed)
        self.model = build_model(self.built.model_config, self.device)
        loop = self.loop = Loop(
            config.train,
            objective=self.built.objective,
            model=self.model,
            columns=train_columns(self.built.objective),
            seed=config.seed,
            d_model=self.built.model_config.d_model,
            device=self.device,
            world=self.world,
        )
        if self.world.is_first:
            size = 0 if checkpoint is None else checkpoint.state["metrics_bytes"]
            self._metrics = MetricsLog(self.files.metrics, size=size)
        if checkpoint is not None:
            parallel.load_weights(self.model, checkpoint.weights())
            if (checkpoint.path / "best.safetensors").is_file():
                self.best = checkpoint.weights("best")
            loop.load_state_dict(checkpoint.state["loop"], shards=checkpoint.shards)
        if self.world.is_first and config.train.tensorboard:
            self._board = Board(self.files.path / "tensorboard", step=loop.position.step)
        self._stopwatch = Stopwatch(
            macs_per_token=macs_per_token(self.built),
            peak=self._peak_flops(),
            device=self.device,
        )
        self._stopwatch.start(loop.position.tokens_seen, self.timings.evaluate_seconds)
        self._training_since = self._speed_since = time.monotonic()
        self._timed_tokens = self._speed_tokens = loop.position.tokens_seen
        self._timed_evaluation = self.timings.evaluate_seconds
        try:
            fit(loop, self, evaluate_interval=config.evaluate.interval)
        finally:
            self._time_training()

    def _peak_flops(self) -> float | None:
        if self.device.type != "cuda":
            return None
        one = peak_flops(torch.cuda.get_device_name(self.device), self.config.train.precision)
        return None if one is None else one * self.world.size

    def _warn(self, text: str) -> None:
        logger.warning(text)
        self.on_progress({"event": "notice", "message": text})

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that was made under a config with another identity."""
        if checkpoint.state["hash"] == self.record.hash:
            return
        before = dump(checkpoint.state["identity"]).splitlines()
        after = dump(identity(self.config, self.data_hash)).splitlines()
        changed = [
            line
            for line in difflib.unified_diff(before, after, lineterm="", n=0)
            if not line.startswith(("---", "+++", "@@"))
        ]
        raise ConfigError(
            f"{checkpoint.path}: was made under another config; resuming would mix the two: "
            + "; ".join(line[:1] + line[1:].strip() for line in changed)
        )

    @property
    def stop_requested(self) -> bool:
        if self.world.size == 1:
            return self.stop.requested
        status = self.world.largest(self.stop.exit_status if self.stop.requested else 0)
        if status:
            self.stop.adopt(status)
        # What was agreed on, since a signal may have come in the meantime, to this rank alone.
        return status > 0

    def _on_first(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do what the others wait for, and return what it returned on every rank.

        Raises:
            Stopped: on every rank, if rank 0 was stopped in the middle of it.
        """
        if self.world.size == 1:
            return work()
        outcome: tuple[str, Any, int] | None = None
        if self.world.is_first:
            try:
                outcome = "done", work(), 0
            except Stopped as stopped:
                outcome = "stopped", str(stopped), self.stop.exit_status
        kind, value, status = self.world.share(outcome)
        if kind == "stopped":
            self.stop.adopt(status)
            raise Stopped(value)
        return value

    def evaluate(self) -> float | None:
        """Score the interval splits and log their metrics; return the selecting split's score."""
        assert self.loop is not None
        splits = self.built.interval_splits(self.config)
        self._make_scored()

        def metrics_of_splits() -> dict[str, Any]:
            return {split: self._evaluate(split, oracle=False).scores.metrics for split in splits}

        results = metrics_of_splits() if self._all_score else self._on_first(metrics_of_splits)
        selected = None
        for split, metrics in results.items():
            self._append({"step": self.loop.position.step, "split": split, "metrics": metrics})
            if split == self.config.selection_split:
                selected = selection_score(self.built.task.kind, metrics)
        return selected

    @property
    def _all_score(self) -> bool:
        """Whether every rank scores a share of a split; else rank 0 scores all of it."""
        return self.built.task.kind == "language_modelling"

    def _make_scored(self) -> None:
        """Have the model that is scored: the one in training, or a copy in one piece."""
        self.scored = self.model
        if parallel.is_sharded(self.model):
            keep = self._all_score or self.world.is_first
            self.scored = parallel.whole_copy(self.model, self.device, keep=keep)

    def keep_best(self) -> None:
        self.best = parallel.full_weights(self.model)

    def log(self, row: dict[str, Any]) -> None:
        assert self.loop is not None
        if self.built.task.kind == "language_modelling":
            row = row | {"perplexity": perplexity(row["loss"])}
            # Where the model lies in pieces, all ranks have to run it.
            if self.world.is_first or parallel.is_sharded(self.model):
                usage = expert_usage(
                    self.model,
                    self.built.objective,
                    self.loop.columns,
                    self.loop.rows,
                    device=self.device,
                    precision=self.config.train.precision,
                )
                row |= {"routing": usage} if usage else {}
            row["speed"] = self._stopwatch.lap(
                self.loop.position.tokens_seen, self.timings.evaluate_seconds
            )
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.append(row)
        if self._board is not None:
            self._board.add(row)

    def save(self) -> None:
        assert self.loop is not None
        is_sharded = parallel.is_sharded(self.model)
        weights = {"model": parallel.full_weights(self.model, keep=self.world.is_first)}
        if self.best is not None:
            weights["best"] = self.best
        state = {
            "loop": self.loop.state_dict(),
            "metrics_bytes": None if self._metrics is None else self._metrics.flush(),
            "hash": self.record.hash,
            "identity": identity(self.config, self.data_hash),
        }
        model_config = json.dumps(self.built.model_config.to_dict(), indent=1) + "\n"
        save_checkpoint(
            self.files.checkpoints,
            step=self.loop.position.step,
            state=state,
            weights=weights,
            files={"config.json": model_config.encode()},
            write_shards=self._write_shards if is_sharded else None,
            world=self.world,
        )
        self._time_training()
        self._write_timings()

    def _write_shards(self, folder: Path) -> None:
        assert self.loop is not None
        from runners.training.sharding import save_shards

        save_shards(folder, self.model, self.loop.optimizer, self.world)

    def progress(self, values: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._shown < PROGRESS_SECONDS:
            return
        assert self.loop is not None
        self._shown = now
        seconds = now - self._speed_since
        tokens = self.loop.position.tokens_seen - self._speed_tokens
        self.on_progress(
            {
                "phase": "train",
                "step": self.loop.position.step,
                "steps": self.config.train.steps,
                "loss": values["loss"],
                "tokens_per_second": tokens / seconds,
            }
        )

    # --- scoring ------------------------------------------------------------------------

    def score(self) -> None:
        """Score the selected weights on every split and depth, and write the result."""
        self._make_scored()
        if self._all_score:
            evaluations = self._evaluate_all()
            self._on_first(lambda: self._write_result(evaluations))
        else:
            self._on_first(lambda: self._write_result(self._evaluate_all()))

    def _evaluate_all(self) -> list[Evaluation]:
        if self.config.selection_split is not None:
            assert self.best is not None
            self.scored.load_state_dict(self.best)
        return [
            self._evaluate(split, repeats=depth)
            for split in self.built.final_splits(self.config)
            for depth in self.built.depths(self.config)
        ]

    def _write_result(self, evaluations: list[Evaluation]) -> None:
        assert self.loop is not None
        position, config = self.loop.position, self.config
        selected_step = position.step
        if config.selection_split is not None:
            assert position.best_step is not None
            selected_step = position.best_step
        own = [evaluation for evaluation in evaluations if evaluation.is_default_depth]
        kind = self.built.task.kind
        write_json_lines(
            self.files.predictions, [row for evaluation in own for row in evaluation.rows(kind)]
        )
        self._write_timings()
        notes = [evaluation.note(config.evaluate) for evaluation in own]
        write_json(
            self.files.result,
            {
                "status": "done",
                **dataclasses.asdict(self.record),
                "select": config.select,
                "step": selected_step,
                "task": describe_task(self.built.task, self.built.final_splits(config)),
                "model": describe_model(self.built),
                "tokens_seen": position.tokens_seen,
                "notes": [note for note in notes if note],
                "scores": [evaluation.to_dict() for evaluation in evaluations],
            },
        )

    def _evaluate(
        self, split: str, *, repeats: int | list[int] | None = None, oracle: bool = True
    ) -> Evaluation:
        assert self.loop is not None
        step = self.loop.position.step

        def on_batch(done: int, total: int) -> None:
            if self.stop_requested if self._all_score else self.stop.requested:
                raise Stopped(f"stopped while scoring {split} at step {step}")
            now = time.monotonic()
            if now - self._shown >= PROGRESS_SECONDS:
                self._shown = now
                self.on_progress(
                    {
                        "phase": f"score {split}",
                        "step": step,
                        "steps": self.config.train.steps,
                        "rows": done,
                        "of_rows": total,
                    }
                )

        began = time.monotonic()
        try:
            return evaluate_split(
                self.scored,
                self.built,
                split,
                config=self.config.evaluate,
                device=self.device,
                precision=self.config.train.precision,
                repeats=repeats,
                oracle=oracle,
                on_batch=on_batch,
                world=self.world if self._all_score else World(),
            )
        finally:
            self.timings.evaluate_seconds += time.monotonic() - began

    # --- timings ------------------------------------------------------------------------

    def _read_timings(self) -> _Timings:
        try:
            content = json.loads(self.files.timings.read_text())
        except (FileNotFoundError, ValueError):
            return _Timings(starts=1)
        known = {field.name for field in dataclasses.fields(_Timings)}
        timings = _Timings(**{name: content[name] for name in known if name in content})
        timings.starts += 1
        return timings

    def _time_training(self) -> None:
        """Add the time since the last call, scoring on the way left out."""
        assert self.loop is not None
        now, timings = time.monotonic(), self.timings
        evaluated = timings.evaluate_seconds - self._timed_evaluation
        timings.train_seconds += now - self._training_since - evaluated
        timings.tokens_trained += self.loop.position.tokens_seen - self._timed_tokens
        self._training_since, self._timed_evaluation = now, timings.evaluate_seconds
        self._timed_tokens = self.loop.position.tokens_seen

    def _write_timings(self) -> None:
        if not self.world.is_first:
            return
        now = time.monotonic()
        self.timings.wall_seconds += now - self._began
        self._began = now
        write_json(self.files.timings, self.timings.to_dict())

    def close(self) -> None:
        """Close the log and write the timings, also of a run that was stopped."""
        if self._metrics is not None:
            self._metrics.close()
        if self._board is not None:
            self._board.close()
        try:
            self._write_timings()
        except OSError as error:
            logger.error("%s: cannot be written: %s", self.files.timings, error)
