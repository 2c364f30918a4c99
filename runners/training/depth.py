"""How deep a step of training is: a draw that every rank and every resumed run makes alike."""

from __future__ import annotations

import math

import numpy as np

from runners.config.schema import RepeatsConfig, TrainConfig

STREAM = 0x64657074
"""Parts these numbers from others that are drawn from the same seed and step."""


def draw_repeats(config: RepeatsConfig, *, seed: int, step: int) -> int | None:
    """Return the repeats of a step, counted from 0; None: as many as the model is made for.

    The number depends on seed and step alone. ``poisson_lognormal`` is 1 + Poisson(rate), the rate
    log-normal with mean ``mean``: its logarithm is normal with mean log(mean) - sigma² / 2
    (arXiv 2502.05171).
    """
    generator = np.random.default_rng([STREAM, seed, step])
    if config.kind == "uniform":
        assert config.low is not None
        assert config.high is not None
        return int(generator.integers(config.low, config.high, endpoint=True))
    if config.kind == "poisson_lognormal":
        assert config.mean is not None
        assert config.sigma is not None
        rate = generator.lognormal(math.log(config.mean) - config.sigma**2 / 2, config.sigma)
        return 1 + int(generator.poisson(rate))
    return None


def depth_of_step(config: TrainConfig, *, seed: int, step: int) -> dict[str, int]:
    """Return what a model is called with in a step, counted from 0, for the depth due in it."""
    chosen = {
        "num_repeats": draw_repeats(config.repeats, seed=seed, step=step),
        "backprop_repeats": config.backprop_repeats,
    }
    return {name: number for name, number in chosen.items() if number is not None}
