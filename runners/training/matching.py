"""What follows from the budgets of a run's ``match`` section."""

from __future__ import annotations

import dataclasses

from moeut.budget import TOLERANCE, Budget, Miss, misses, sized_to
from moeut.config import ModelConfig
from moeut.options import OptionError
from runners.config.schema import ConfigError, RunConfig
from runners.training.lengths import tokens_per_step
from runners.training.objective import Objective
from runners.training.operations import lengths_of, training_flops_per_token


def sized(config: RunConfig, model_config: ModelConfig, objective: Objective) -> ModelConfig:
    """Return the model of a run, sized to the budgets of one.

    Raises:
        ConfigError: a budget below that of the smallest model.
    """
    try:
        return sized_to(model_config, _budget(config), **lengths_of(objective))
    except OptionError as error:
        raise _refused(config, objective, error) from error


def with_steps(config: RunConfig, model_config: ModelConfig, objective: Objective) -> RunConfig:
    """Return the run with the number of steps that ``match.training_flops`` pays for.

    Raises:
        ConfigError: the budget does not pay for one step, or a schedule has no room in its steps.
    """
    budget = config.match.training_flops
    if budget is None:
        return config
    for _ in range(_ROUNDS):
        per_step = training_flops_per_step(config, model_config, objective)
        steps = round(budget / per_step)
        if steps < 1:
            expected = f"one step takes {per_step:,}; expected at least half of that"
            raise config.error("match.training_flops", budget, expected)
        if steps == config.train.steps:
            break
        with config.locating("train"):
            train = dataclasses.replace(config.train, steps=steps)
            config = dataclasses.replace(config, train=train)
    return config


_ROUNDS = 3
"""Times that steps are counted: where depth grows in training, a step's cost depends on them."""


def training_flops_per_step(
    config: RunConfig, model_config: ModelConfig, objective: Objective
) -> int:
    """Return the operations of an update, forward and backward, at the mean lengths of train."""
    each = training_flops_per_token(config.train, model_config, objective)
    return each * tokens_per_step(config.train, objective)


def unmet(config: RunConfig, model_config: ModelConfig, objective: Objective) -> tuple[str, ...]:
    """Return which budgets a run, sized to them, is not near, and how far off it is."""
    found = misses(model_config, _budget(config), **lengths_of(objective))
    budget = config.match.training_flops
    if budget is not None:
        spent = config.train.steps * training_flops_per_step(config, model_config, objective)
        if abs(spent - budget) > TOLERANCE * budget:
            found.append(Miss("training_flops", budget, spent))
    return tuple(f"match.{miss}" for miss in found)


def _budget(config: RunConfig) -> Budget:
    return Budget(**{name: getattr(config.match, name) for name in config.match.of_model})


def _refused(config: RunConfig, objective: Objective, error: OptionError) -> ConfigError:
    sizes = ", ".join(f"{name} {size}" for name, size in objective.sizes().items())
    located = config.located(error, "match")
    expected = f"{located.expected} (with the task's {sizes})"
    return ConfigError(expected, path=located.path, value=located.value, place=located.place)
