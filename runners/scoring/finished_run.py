"""A finished run, scored again: on any split and at any depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moeut.loading import check_fit
from moeut.recurrence.exit_rules import ExitRule
from runners.config.schema import ConfigError, EvaluateConfig, RunConfig
from runners.process import environment
from runners.process.checkpoint import Checkpoint, check_run, list_checkpoints, load_checkpoint
from runners.process.run_directory import RunDirectory
from runners.reporting.run_result import Score
from runners.scoring.exits import exits
from runners.scoring.splits import split_scorer
from runners.training.experiment import Built, build, build_model
from tasks.base.options import nearest


@dataclass(frozen=True)
class FinishedRun:
    """A run with a result, and the weights that its ``select`` names."""

    config: RunConfig
    built: Built
    model: torch.nn.Module
    device: torch.device


def load_finished_run(directory: Path) -> FinishedRun:
    """Load a finished run.

    Args:
        directory: of the run.

    Raises:
        ConfigError: no finished run, or data that has changed since.
        Damaged: its last checkpoint is not what was written.
        Refused: its last checkpoint is another run's.
    """
    files = RunDirectory(directory)
    if directory.is_file():
        raise ConfigError(
            f"{directory}: a file, which has no splits of its own; expected the directory of a "
            f"run, or --task with a zero-shot benchmark"
        )
    if files.status() != "done":
        hint = "; it is a sweep's: name a run" if (directory / "sweep.json").is_file() else ""
        raise ConfigError(f"{directory}: holds no finished run (no {files.result.name}){hint}")
    config = files.read_config()
    built = build(config)
    device = environment.choose_device(config.train)
    environment.prepare_process(config.train, device)
    model = build_model(built.model_config, device)
    # Not load_latest, which would pass over a damaged checkpoint to one of another step.
    checkpoint = _last_checkpoint(files)
    _check_data(checkpoint, built)
    weights = checkpoint.weights(config.scored_weights)
    check_fit(model, weights, str(checkpoint.path))
    model.load_state_dict(weights)
    return FinishedRun(config, built, model, device)


def _last_checkpoint(files: RunDirectory) -> Checkpoint:
    checkpoints = list_checkpoints(files.checkpoints)
    if not checkpoints:
        raise ConfigError(f"{files.checkpoints}: holds no checkpoint")
    checkpoint = load_checkpoint(checkpoints[-1])
    check_run(checkpoint, files.find_hash())
    return checkpoint


def _check_data(checkpoint: Checkpoint, built: Built) -> None:
    """Refuse to score on other data than the run's, as when a file was changed since."""
    before, now = checkpoint.state["identity"]["data_hash"], built.task.data_hash()
    if before != now:
        raise ConfigError(
            f"{checkpoint.path}: was trained on data that is no longer what the run's config names "
            f"(data hash {before[:12]}…, now {now[:12]}…): its scores would be of something else"
        )


def score_finished_run(
    run: FinishedRun,
    *,
    splits: Sequence[str] = (),
    repeats: Sequence[int] = (),
    settings: EvaluateConfig | None = None,
    exit_rule: ExitRule | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Return the scores of a run, split by split.

    Args:
        run: the run.
        splits: names; none: those that the run scores at its end.
        repeats: depths; none: the model's own.
        settings: rows of each split; None: the run's own setting.
        exit_rule: when tokens leave early; None: as the model itself says. Where tokens leave, the
            repeats that they took are a metric too.
        check: called before every batch; may raise to stop.

    Raises:
        ValueError: an unknown split, a depth that the model cannot take, or a rule that it cannot.
    """
    wanted, depths = _splits(run, splits), _depths(run.built, repeats)
    scorer = split_scorer(run.built.objective)(
        model=run.model,
        built=run.built,
        config=run.config.evaluate if settings is None else settings,
        device=run.device,
        precision=run.config.train.precision,
        on_batch=lambda done, total: check(),
    )
    scores = []
    for split in wanted:
        for depth in depths:
            with exits(run.model, exit_rule) as used:
                score = scorer.score(split, repeats=depth).score
            metrics = score.metrics | used.metrics(run.built, exit_rule)
            scores.append(dataclasses.replace(score, metrics=metrics))
    return scores


def _splits(run: FinishedRun, splits: Sequence[str]) -> list[str]:
    known = list(run.built.task.splits())
    for split in splits:
        if split not in known:
            raise ConfigError(
                f"--split {split}: expected one of {', '.join(known)}{nearest(split, known)}"
            )
    return list(splits) or run.built.final_splits(run.config)


def _depths(built: Built, repeats: Sequence[int]) -> list[int | list[int]]:
    own = built.default_repeats
    if not repeats:
        return [own]
    if not built.is_shared:
        raise ConfigError(
            f"--repeats {','.join(map(str, repeats))}: the layers of this model are not shared, so "
            f"its depth is fixed"
        )
    return [[number, number] if isinstance(own, list) else number for number in repeats]


def choose_rows(
    config: EvaluateConfig, *, rows_per_category: int | None, all_rows: bool
) -> EvaluateConfig:
    """Return settings with ``rows_per_category`` rows of each category, or with all rows.

    Raises:
        ConfigError: a number of rows below 1.
    """
    if rows_per_category is not None and rows_per_category < 1:
        raise ConfigError(f"--rows-per-category {rows_per_category}: must be at least 1")
    if all_rows or rows_per_category is not None:
        return dataclasses.replace(config, rows_per_category=rows_per_category)
    return config
