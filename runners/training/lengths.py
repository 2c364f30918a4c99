"""How long the rows of the train split are, and how many tokens of them a step reads."""

from __future__ import annotations

import functools

from runners.config.train import TrainConfig
from runners.training.batches import Columns
from runners.training.objective import Objective


@functools.lru_cache(maxsize=2)
def train_columns(objective: Objective) -> Columns:
    """Return the train split, encoded; the last few stay in memory."""
    task = objective.task
    return objective.columns(task.split(task.train_split))


@functools.lru_cache(maxsize=8)
def mean_lengths(objective: Objective) -> tuple[int, ...]:
    """Return the mean length, over train's rows, of each sequence that the model reads."""
    known = objective.lengths()  # also of a text that is not packed yet
    if known is not None:
        return known
    return tuple(round(length) for length in train_columns(objective).shape.mean(axis=0).tolist())


def tokens_per_step(train: TrainConfig, objective: Objective) -> int:
    """Return the tokens that the model reads in an update, at the mean lengths of train's rows.

    Where ``tokens_per_batch`` fills batches, that bound.
    """
    return train.tokens_per_batch or train.batch_size * sum(mean_lengths(objective))
