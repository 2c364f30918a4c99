"""What a model costs on its task: parameters, multiply-accumulates, an estimate of time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import torch

from moeut import sizing
from moeut.config import ModelConfig
from runners.config.schema import RunConfig, TrainConfig
from runners.process import environment
from runners.process.generators import seed_everything
from runners.reporting.run_result import ModelSummary
from runners.training.experiment import Built, build_model
from runners.training.lengths import mean_lengths, train_columns
from runners.training.loop import Loop


def describe_model(built: Built) -> ModelSummary:
    """Return what has to be matched for models to be compared.

    ``macs_per_token`` is at the mean lengths of the train split's rows.
    """
    config = built.model_config
    stack = list(config.stacks.values())[-1]
    macs = macs_per_token(built)
    return ModelSummary(
        parameters=sizing.count_parameters(config),
        used_parameters=sizing.count_used_parameters(config),
        macs_per_token=macs,
        training_flops_per_token=sizing.training_flops_per_token(macs),
        cache_bytes_per_token=sizing.cache_bytes_per_token(config),
        num_layers=stack.depth.num_applications,
        group_size=stack.depth.group,
        d_model=config.d_model,
    )


def macs_per_token(
    built: Built, config: ModelConfig | None = None, *, everyone: bool = False
) -> int:
    """Return the multiply-accumulates of one forward pass per token that the model reads.

    ``config``: of another model on the same task. ``everyone`` as in ``moeut.sizing``.
    """
    first, *second = mean_lengths(built.objective)
    return sizing.macs_per_token(
        built.model_config if config is None else config,
        sequence_length=first,
        target_length=second[0] if second else None,
        everyone=everyone,
    )


def macs_at(built: Built, repeats: Mapping[str, float], *, readings: float = 0.0) -> int:
    """Return ``macs_per_token`` where tokens take other ``repeats`` in the mean, by stack.

    ``readings``: times that a state is read out besides, through coda and head.
    """
    config = built.model_config
    depths = {name: stack.depth for name, stack in config.stacks.items()}

    def cost(**numbers: int) -> int:
        """Return the cost at a depth of two repeats, but for the stacks that are named."""
        changed = {
            name: dataclasses.replace(depth, repeats=numbers.get(name, 2))
            for name, depth in depths.items()
        }
        last = changed[list(changed)[-1]]
        encoder = changed["encoder"] if len(changed) > 1 else None
        other = dataclasses.replace(config, depth=last, encoder_depth=encoder)
        return macs_per_token(built, other, everyone=True)

    total = float(cost())
    for name, depth in depths.items():  # a repeat costs the same wherever it stands
        taken = repeats.get(name, float(depth.repeats))
        total += (cost(**{name: 3}) - cost()) * (taken - 2)
    return round(total + readings * _reading(built))


def _reading(built: Built) -> float:
    """Return what it costs to read a token's state out, through coda and head."""
    config = built.model_config
    depth = dataclasses.replace(config.depth, coda=2 * config.depth.coda)
    longer = dataclasses.replace(config, depth=depth)
    coda = macs_per_token(built, longer) - macs_per_token(built)
    return coda + config.d_model * config.num_outputs


def tokens_per_step(config: TrainConfig, built: Built) -> int:
    """Return the tokens that a step reads, about: rows of mean lengths, or the bound on them."""
    return config.tokens_per_batch or config.batch_size * sum(mean_lengths(built.objective))


def seconds_per_step(config: RunConfig, built: Built, *, seconds: float) -> float:
    """Return the time of an update of a run on this machine, measured over ``seconds`` at most.

    One update comes before the measured ones, and at least one is measured. Global random states
    are left changed.
    """
    device = environment.choose_device(config.train)
    environment.prepare_process(config.train, device)
    seed_everything(config.seed)
    loop = Loop(
        config.train,
        objective=built.objective,
        model=build_model(built.model_config, device),
        columns=train_columns(built.objective),
        seed=config.seed,
        d_model=built.model_config.d_model,
        device=device,
    )
    loop.advance()
    began = time.monotonic()
    steps = 0
    while steps == 0 or (time.monotonic() - began < seconds and steps < config.train.steps):
        loop.advance()
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.monotonic() - began) / steps
