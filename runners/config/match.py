"""Budgets that a run is sized to: the section ``match``."""

from __future__ import annotations

from dataclasses import dataclass

from runners.config.checks import above_zero


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """What a run is to cost. Each budget sizes an option, which is then not given; where the model
    has none left for it, plan and report say how far off it is."""

    parameters: int | None = None
    """Parameters of the model: sizes the width of the feed-forward, hidden_size or num_experts."""
    flops_per_token: float | None = None
    """Floating-point operations of a forward pass for each token read, two for each
    multiply-accumulate: sizes feed_forward.top_k, or hidden_size where there are no experts and no
    budget of parameters."""
    cache_bytes_per_token: int | None = None
    """Bytes of keys and values that a cache holds of a token, in float32: sizes
    attention.head_size."""
    training_flops: float | None = None
    """Floating-point operations of the whole training, forward and backward: ``train.steps`` is
    replaced by the number of steps that comes nearest to it."""

    def __post_init__(self) -> None:
        above_zero(self, *vars(self))

    @property
    def of_model(self) -> tuple[str, ...]:
        """The budgets that size the model."""
        every = ("parameters", "flops_per_token", "cache_bytes_per_token")
        return tuple(name for name in every if getattr(self, name) is not None)
