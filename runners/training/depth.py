"""How deep a step of training is: a draw that every rank and every resumed run makes alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from moeut.recurrence.row_depth import RowDepth
from runners.config.repeats import RepeatsConfig
from runners.config.schema import TrainConfig
from runners.training.batches import Batch

STREAM = 0x64657074
"""Parts these numbers from others that are drawn from the same seed and step."""

PUBLISHED_SEED = 514229
"""What seal-rg/recurrent-pretraining at 59e0b69 and sandyresearch/parcae at dee8363 add to the step
for the seed of a draw."""


def draw_repeats(
    config: RepeatsConfig, *, seed: int, step: int, backprop_repeats: int | None = None
) -> int | None:
    """Return the repeats of a step, counted from 0; None: as many as the model is made for.

    The number depends on seed and step alone. ``poisson_lognormal`` is 1 + Poisson(rate), the rate
    log-normal with mean ``mean``: its logarithm is normal with mean log(mean) - sigma² / 2
    (arXiv 2502.05171). ``poisson`` is a Poisson number, at least 1. With ``draws: published`` a
    mean below ``backprop_repeats`` gives way to that number, as in the published code.
    """
    drawn = draw_of_rows(config, seed=seed, step=step, rows=1, backprop_repeats=backprop_repeats)
    return None if drawn is None else int(drawn[0])


def draw_of_rows(
    config: RepeatsConfig, *, seed: int, step: int, rows: int, backprop_repeats: int | None = None
) -> np.ndarray[Any, Any] | None:
    """Return the repeats (rows,) of each row of a step, drawn as ``draw_repeats`` says."""
    if config.draws == "published":
        return _published(config, step, rows, backprop_repeats or 0)
    return _draw(config, np.random.default_rng([STREAM, seed, step]), step, rows)


def draw_of_tokens(
    config: RepeatsConfig, *, seed: int, step: int, row: int, length: int
) -> np.ndarray[Any, Any]:
    """Return the repeats (length,) of the tokens of a row, counted in the step's whole batch.

    A longer row begins with the same numbers, so padding changes none.
    """
    # Rates by a generator of their own: else what follows them would depend on their number.
    generator, rates = (np.random.default_rng([STREAM, seed, step, row, part]) for part in (0, 1))
    drawn = _draw(config, generator, step, length, rates)
    assert drawn is not None
    return drawn


def _draw(
    config: RepeatsConfig,
    generator: np.random.Generator,
    step: int,
    count: int,
    rates: np.random.Generator | None = None,
) -> np.ndarray[Any, Any] | None:
    grown = config.grown(step)
    if config.kind == "uniform":
        assert config.low is not None
        assert config.high is not None
        high = max(config.low, math.ceil(grown * config.high))
        drawn = generator.integers(config.low, high, endpoint=True, size=count)
    elif config.kind == "poisson_lognormal":
        assert config.mean is not None
        assert config.sigma is not None
        middle = math.log(grown * config.mean) - config.sigma**2 / 2
        rate = (rates or generator).lognormal(middle, config.sigma, size=count)
        drawn = 1 + generator.poisson(rate)
    elif config.kind == "poisson":
        assert config.mean is not None
        drawn = np.maximum(generator.poisson(grown * config.mean, size=count), 1)
    elif config.number is not None:
        drawn = np.full(count, max(1, math.ceil(grown * config.number)))
    else:
        return None
    return _cut(drawn, config)


def _published(config: RepeatsConfig, step: int, count: int, least: int) -> np.ndarray[Any, Any]:
    """Return the numbers that the published code draws in a step, in float32, by its generator."""
    assert config.mean is not None
    generator = torch.Generator().manual_seed((PUBLISHED_SEED + step) % (2**31 - 1))
    mean = config.grown(step) * max(config.mean, least)
    if config.kind == "poisson":
        rate = torch.full((count,), mean)
        drawn = torch.poisson(rate, generator=generator).clamp(min=1)
        return _cut(drawn.long().numpy(), config)
    assert config.sigma is not None
    middle = math.log(mean) - config.sigma**2 / 2
    rate = torch.zeros(count).log_normal_(middle, config.sigma, generator=generator)
    return _cut(1 + torch.poisson(rate, generator=generator).long().numpy(), config)


def _cut(drawn: np.ndarray[Any, Any], config: RepeatsConfig) -> np.ndarray[Any, Any]:
    return drawn if config.longest is None else np.minimum(drawn, config.longest)


@dataclass(frozen=True)
class StepDepth:
    """What a model is called with in a step, for the depth due in it."""

    call: dict[str, int] = field(default_factory=dict)
    """Numbers that hold for the whole batch."""

    rows: np.ndarray[Any, Any] | None = None
    """(N,) or (N, T) repeats of each row, or token, of the whole batch; None: ``call`` says all."""

    def of_part(self, rows: np.ndarray[Any, Any], part: Batch, device: torch.device) -> Any:
        """Return the keyword arguments for a ``part`` that is some ``rows`` of the batch."""
        if self.rows is None:
            return self.call
        total = torch.from_numpy(self.rows[rows]).to(device)
        if total.dim() == 2:  # a part may be padded to fewer columns than the whole
            read = part.tensors["tokens" if "tokens" in part.tensors else "source"]
            total = total[:, : read.shape[1]]
        most = self.call.get("backprop_repeats")
        last = total if most is None else total.clamp(max=most)
        return self.call | {"row_depth": RowDepth(total - last, last)}


def depth_of_step(
    config: TrainConfig,
    *,
    seed: int,
    step: int,
    rows: int = 1,
    length: int = 0,
    loops: np.ndarray[Any, Any] | None = None,
) -> StepDepth:
    """Return the depth of a step, counted from 0, whose batch has ``rows`` of ``length`` tokens.

    With kind length, row i has ``loops[i]`` repeats; a batch that shares one number, the largest.

    A pass in which rows differ has as many repeats without gradient, and with it, as the row that
    takes most of either; under ``train.static_depth`` as many as any row may ever take.
    """
    repeats, last = config.repeats, config.backprop_repeats
    if repeats.kind == "length":
        assert loops is not None
        each_row = _cut(loops, repeats)
        total: np.ndarray[Any, Any] | None = (
            each_row if repeats.per == "sequence" else each_row.max(keepdims=True)
        )
    elif repeats.per == "token":
        each = range(rows)
        drawn = [draw_of_tokens(repeats, seed=seed, step=step, row=r, length=length) for r in each]
        total = np.stack(drawn)
    else:
        count = rows if repeats.per == "sequence" else 1
        total = draw_of_rows(repeats, seed=seed, step=step, rows=count, backprop_repeats=last)
    if total is None or (repeats.per == "batch" and not config.static_depth):
        chosen = {
            "num_repeats": None if total is None else int(total[0]),
            "backprop_repeats": last,
        }
        return StepDepth({name: number for name, number in chosen.items() if number is not None})
    if repeats.per == "batch":
        total = np.repeat(total, rows)
    most = repeats.most if config.static_depth else int(total.max())
    assert most is not None
    call = {"num_repeats": most}
    if last is not None:  # else nothing is cut off, which a model may not allow
        call["backprop_repeats"] = min(last, most)
    return StepDepth(call, total.astype(np.int64))
