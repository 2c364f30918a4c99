"""The work of a model on its task: multiply-accumulates and operations for each token it reads."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from moeut import sizing
from moeut.config import ModelConfig
from runners.config.repeats import RepeatsConfig
from runners.config.train import TrainConfig
from runners.training.depth import draw_of_rows
from runners.training.lengths import mean_lengths, train_columns
from runners.training.objective import Objective

ROUGH_LENGTH = 16
"""Tokens of a row for comparisons that need not look at rows."""
DRAWS = 1024
"""Steps whose depths are drawn for the mean depth of a training."""
BATCHES = 64
"""Steps whose rows' lengths are taken for it where depth follows length."""


class Lengths(TypedDict):
    """Tokens of a row, under the names that ``moeut.sizing`` has."""

    sequence_length: int
    target_length: int | None


def lengths_of(objective: Objective) -> Lengths:
    """Return the mean lengths of train's rows."""
    first, *second = mean_lengths(objective)
    return {"sequence_length": first, "target_length": second[0] if second else None}


def macs_per_token(config: ModelConfig, objective: Objective, *, everyone: bool = False) -> int:
    """Return the multiply-accumulates of one forward pass per token that the model reads.

    At the mean lengths of train's rows; ``everyone`` as in ``moeut.sizing``.
    """
    return sizing.macs_per_token(config, **lengths_of(objective), everyone=everyone)


def rough_work(config: TrainConfig, model_config: ModelConfig) -> float:
    """Return about how many multiply-accumulates a training takes, without a look at its data.

    That is enough to tell the long runs of a sweep from the short ones.
    """
    tokens = config.tokens_per_batch or config.batch_size * ROUGH_LENGTH
    rate = sizing.macs_per_token(model_config, sequence_length=ROUGH_LENGTH)
    return float(config.steps * tokens * rate)


def macs_at(
    config: ModelConfig,
    objective: Objective,
    repeats: Mapping[str, float],
    *,
    readings: float = 0.0,
) -> int:
    """Return ``macs_per_token`` where tokens take other ``repeats`` in the mean, by stack.

    ``readings``: times that a state is read out besides, through coda and head.
    """
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
        return macs_per_token(other, objective, everyone=True)

    shallow = cost()
    total = float(shallow)
    for name, depth in depths.items():  # a repeat costs the same wherever it stands
        taken = repeats.get(name, float(depth.repeats))
        total += (cost(**{name: 3}) - shallow) * (taken - 2)
    return round(total + readings * _reading(config, objective))


def _reading(config: ModelConfig, objective: Objective) -> float:
    """Return what it costs to read a token's state out, through coda and head."""
    depth = dataclasses.replace(config.depth, coda=2 * config.depth.coda)
    longer = dataclasses.replace(config, depth=depth)
    coda = macs_per_token(longer, objective) - macs_per_token(config, objective)
    return coda + config.d_model * config.num_outputs


def training_flops_per_token(train: TrainConfig, config: ModelConfig, objective: Objective) -> int:
    """Return the operations of a forward and a backward pass for each token that is read.

    At the mean depth that is drawn in training, and backward through the repeats that gradients
    flow through. Of tokens that halt by what they are no one knows the depth before: they count as
    if none did. What ``activation_checkpointing`` computes a second time is not counted. A model
    that carries states trains one pass at a time, and one more where it learns what that is worth.
    """
    if any(stack.is_recursive for stack in config.stacks.values()):
        lengths = lengths_of(objective)
        each = sizing.macs_per_token(config, **lengths, passes=1)
        with_gradient = each - sizing.cut_macs_per_token(config, **lengths)
        carry = config.carry
        further = each if carry.halting == "value" and carry.steps > 1 else 0
        return 2 * (each + further) + 4 * with_gradient
    own = {name: float(stack.depth.repeats) for name, stack in config.stacks.items()}
    depth = mean_depth(train, objective)
    if depth is None and train.backprop_repeats is None:
        return sizing.training_flops_per_token(macs_per_token(config, objective))
    if depth is None:
        most = train.backprop_repeats or math.inf
        depths = own, {name: min(number, most) for name, number in own.items()}
    else:
        depths = dict.fromkeys(own, depth[0]), dict.fromkeys(own, depth[1])
    forward, backward = (macs_at(config, objective, each) for each in depths)
    return 2 * forward + 4 * backward


def mean_depth(train: TrainConfig, objective: Objective) -> tuple[float, float] | None:
    """Return the mean repeats of a training, and of those that gradients flow through.

    None: those that the model is made for. Where depth is drawn, the mean is over the draws of up
    to ``DRAWS`` steps, spread over the training; where it follows lengths, over the
    rows of up to ``BATCHES`` such steps, since a curriculum begins with short ones.
    """
    repeats = train.repeats
    if repeats.kind == "length":
        drawn = _loops_of_rows(train, objective)
        if repeats.longest is not None:
            drawn = np.minimum(drawn, repeats.longest)
    elif repeats.kind == "fixed" and repeats.number is None:
        return None
    else:
        drawn = _draws(repeats, train.steps, train.backprop_repeats)
    last = drawn if train.backprop_repeats is None else np.minimum(drawn, train.backprop_repeats)
    return float(drawn.mean()), float(last.mean())


def _loops_of_rows(train: TrainConfig, objective: Objective) -> np.ndarray:
    columns = train_columns(objective)
    order = columns.order(
        batch_size=train.batch_size, tokens_per_batch=train.tokens_per_batch, seed=0
    )
    steps = np.linspace(0, train.steps - 1, min(train.steps, BATCHES)).astype(int).tolist()
    batches = [columns.loops(order.rows(step)) for step in steps]
    if train.repeats.per == "batch":  # which shares one number, the largest
        batches = [batch.max(keepdims=True) for batch in batches]
    return np.concatenate(batches)


@functools.lru_cache(maxsize=16)
def _draws(config: RepeatsConfig, num_steps: int, backprop_repeats: int | None) -> np.ndarray:
    steps = np.linspace(0, num_steps - 1, min(num_steps, DRAWS)).astype(int).tolist()
    drawn = (
        draw_of_rows(config, seed=0, step=step, rows=1, backprop_repeats=backprop_repeats)
        for step in steps
    )
    return np.array([each[0] for each in drawn if each is not None])
