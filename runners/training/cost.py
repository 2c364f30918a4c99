"""What a model costs on its task: parameters, multiply-accumulates, an estimate of time."""

from __future__ import annotations

import time

import torch

from moeut import sizing
from runners.config.schema import RunConfig
from runners.process import environment
from runners.process.generators import seed_everything
from runners.reporting.run_result import ModelSummary
from runners.training import operations
from runners.training.activations import activation_bytes
from runners.training.experiment import Built, build_model
from runners.training.lengths import train_columns
from runners.training.loop import Loop


def describe_model(built: Built) -> ModelSummary:
    """Return what has to be matched for models to be compared.

    ``macs_per_token`` is at the mean lengths of the train split's rows.
    """
    config = built.model_config
    stack = list(config.stacks.values())[-1]
    return ModelSummary(
        parameters=sizing.count_parameters(config),
        used_parameters=sizing.count_used_parameters(config),
        macs_per_token=operations.macs_per_token(config, built.objective),
        training_flops_per_token=operations.training_flops_per_token(
            built.config.train, config, built.objective
        ),
        cache_bytes_per_token=sizing.cache_bytes_per_token(config),
        activation_bytes=activation_bytes(built),
        num_layers=stack.num_applications,
        group_size=stack.depth.group,
        d_model=config.d_model,
    )


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
