"""What a model costs on its task: parameters, multiply-accumulates, an estimate of time."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch

from moeut import sizing
from runners import environment
from runners.build import Built, build_model, train_columns
from runners.config import RunConfig
from runners.loop import Loop, seed_everything
from runners.objective import Objective


def describe_model(built: Built) -> dict[str, Any]:
    """Return the entry ``model`` of a result: what has to be matched for models to be compared.

    ``macs_per_token`` is at the mean lengths of the train split's rows.
    """
    config = built.model_config
    stack = list(config.stacks.values())[-1]
    return {
        "parameters": sizing.count_parameters(config),
        "macs_per_token": macs_per_token(built),
        "num_layers": stack.num_layers,
        "group_size": stack.group_size,
        "d_model": config.d_model,
    }


def macs_per_token(built: Built) -> int:
    """Return the multiply-accumulates of one forward pass per token that the model reads."""
    source, target = mean_lengths(built.objective)
    if built.model_config.form == "encoder_decoder":
        return sizing.macs_per_token(
            built.model_config, sequence_length=source, target_length=target
        )
    length = source + target - 1 if built.model_config.form == "decoder_lm" else source
    return sizing.macs_per_token(built.model_config, sequence_length=length)


@functools.lru_cache(maxsize=8)
def mean_lengths(objective: Objective) -> tuple[int, int]:
    """Return train's mean lengths: of sources with both marks, of targets with the end."""
    rows = objective.task.split(objective.task.train_split)
    source = sum(len(row.source) + 2 for row in rows) / len(rows)
    target = sum(len(row.target) + 1 for row in rows) / len(rows)
    return round(source), round(target)


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
