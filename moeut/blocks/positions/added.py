"""Positions that are added to the embedded tokens: sinusoids and learned vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from moeut.blocks.positions.base import AbsolutePositions, Entry, PositionOptions
from moeut.blocks.roles import Role, Roles
from moeut.options import require_positive


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(PositionOptions):
    """Fixed sinusoids added to the embedding."""

    kind: ClassVar[str] = "sinusoidal"
    scale: Literal["none", "inverse_sqrt"] = "none"
    """``inverse_sqrt`` divides the sinusoids by sqrt(d_model) (embedding downscaling, PED)."""
    table: Literal["float32", "exact"] = "float32"
    """``float32``: computed so in every precision, as most published models do. ``exact``: in the
    model's own precision; only a model in float64 shows the difference."""

    def build_absolute(self, d_model: int) -> SinusoidalPositions:
        """Return the sinusoids, which have no parameters."""
        scale = d_model**-0.5 if self.scale == "inverse_sqrt" else 1.0
        return SinusoidalPositions(d_model, scale, exact=self.table == "exact")


ROOT_HALF = 0.707106781
"""sqrt(1/2) to the nine digits of TRM, HRM and URM: in float64 the rest would show."""


@dataclass(frozen=True, kw_only=True)
class Learned(PositionOptions):
    """A learned vector per absolute position, added to the embedding."""

    kind: ClassVar[str] = "learned"
    max_length: int = 1024
    """Positions that have a vector; a longer sequence is refused."""
    keep_variance: bool = False
    """Scale the vectors as token embeddings are, and multiply the sum of both by ``ROOT_HALF``, as
    the Tiny Recursive Model and its kin do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_length")

    @property
    def max_tokens(self) -> int:
        """The longest row that has positions."""
        return self.max_length

    def build_absolute(self, d_model: int) -> LearnedPositions:
        """Return the vectors."""
        return LearnedPositions(self.max_length, d_model, keep_variance=self.keep_variance)


class SinusoidalPositions(AbsolutePositions):
    """Sinusoids times a factor."""

    def __init__(self, d_model: int, scale: float, *, exact: bool = False) -> None:
        super().__init__()
        self.d_model, self.scale, self.exact = d_model, scale, exact

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:  # (*positions.shape, D)
        """Return the sinusoids of ``positions`` (T,) or (B, T)."""
        table = torch.float64 if self.exact and dtype == torch.float64 else torch.float32
        return sinusoids(positions, self.d_model, dtype, scale=self.scale, table=table)


class LearnedPositions(AbsolutePositions):
    """One learned vector per position: ``weight`` (max_length, D)."""

    def __init__(self, max_length: int, d_model: int, *, keep_variance: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, d_model))
        self.keep_variance = keep_variance

    def roles(self) -> Roles:
        """Return the role of the vectors, which start as token embeddings do."""
        max_length, d_model = self.weight.shape
        return {"weight": Role("embedding", d_model, max_length)}

    def enter(self, x: Tensor, entry: Entry) -> Tensor:
        """Return the embedded tokens x (B, T, D) with the vectors of their positions."""
        if not self.keep_variance:
            return super().enter(x, entry)
        added = self(entry.positions, x.dtype) * entry.embedding_factor
        return ROOT_HALF * (x + added)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:  # (*positions.shape, D)
        """Return the vectors of ``positions`` (T,) or (B, T); those past the end get the last one.

        Only padding may lie past the end: ``check_length`` refuses a longer sequence.
        """
        return nn.functional.embedding(positions.clamp(max=self.weight.shape[0] - 1), self.weight)

    def check_length(self, length: int) -> None:
        """Raise ``ValueError`` if a sequence of ``length`` tokens has positions without one."""
        if length > self.weight.shape[0]:
            raise ValueError(
                f"sequence length {length}: learned positions end at "
                f"max_length={self.weight.shape[0]}"
            )


def sinusoids(
    positions: Tensor,
    width: int,
    dtype: torch.dtype,
    *,
    scale: float = 1.0,
    table: torch.dtype = torch.float32,
) -> Tensor:
    """Return (*positions.shape, width) sinusoids: sin in the even channels, cos in the odd ones.

    The angle of channels 2i and 2i+1 is position · exp(-2i · ln(10000) / width). It is computed in
    ``table``, float32 as published models do whatever ``dtype`` is, and only the result times
    ``scale`` is cast: in float64 it would differ from theirs by up to 6e-7. Positions may be
    negative.
    """
    even = torch.arange(0, width, 2, dtype=table, device=positions.device)
    angles = positions.to(table).unsqueeze(-1) * torch.exp(even * (-math.log(10000.0) / width))
    pairs = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    return (pairs[..., :width] * scale).to(dtype)
