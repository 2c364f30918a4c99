"""Budgets that a run is sized to: the section ``match``."""

from __future__ import annotations

from dataclasses import dataclass

from runners.config.checks import above_zero


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """What a run is to cost; what is free in it follows."""

    training_flops: float | None = None
    """Floating-point operations of the whole training, forward and backward: ``train.steps`` is
    replaced by the number of steps that comes nearest to it."""

    def __post_init__(self) -> None:
        above_zero(self, "training_flops")
