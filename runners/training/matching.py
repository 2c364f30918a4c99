"""What follows from the budgets of a run's ``match`` section."""

from __future__ import annotations

import dataclasses

from moeut import sizing
from moeut.config import ModelConfig
from runners.config.schema import RunConfig
from runners.training.lengths import mean_lengths, tokens_per_step
from runners.training.objective import Objective


def with_steps(config: RunConfig, model_config: ModelConfig, objective: Objective) -> RunConfig:
    """Return the run with the number of steps that ``match.training_flops`` pays for.

    Raises:
        ConfigError: the budget does not pay for one step, or a schedule has no room in its steps.
    """
    budget = config.match.training_flops
    assert budget is not None
    per_step = training_flops_per_step(config, model_config, objective)
    steps = round(budget / per_step)
    if steps < 1:
        expected = f"one step takes {per_step:,}; expected at least half of that"
        raise config.error("match.training_flops", budget, expected)
    with config.locating("train"):
        return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def training_flops_per_step(
    config: RunConfig, model_config: ModelConfig, objective: Objective
) -> int:
    """Return the operations of an update, forward and backward, at the mean lengths of train."""
    first, *second = mean_lengths(objective)
    macs = sizing.macs_per_token(
        model_config, sequence_length=first, target_length=second[0] if second else None
    )
    tokens = tokens_per_step(config.train, objective)
    return sizing.training_flops_per_token(macs) * tokens
