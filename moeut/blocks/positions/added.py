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
    """Fixed sinusoids added to the embedding, computed in float32."""

    kind: ClassVar[str] = "sinusoidal"
    scale: Literal["none", "inverse_sqrt"] = "none"
    """``inverse_sqrt`` divides the sinusoids by sqrt(d_model) (embedding downscaling, PED)."""

    def build_absolute(self, d_model: int) -> SinusoidalPositions:
        """Return the sinusoids, which have no parameters."""
        scale = d_model**-0.5 if self.scale == "inverse_sqrt" else 1.0
        return SinusoidalPositions(d_model, scale)


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

    def __init__(self, d_model: int, scale: float) -> None:
        super().__init__()
        self.d_model, self.scale = d_model, scale

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:  # (*positions.shape, D)
        """Return the sinusoids of ``positions`` (T,) or (B, T)."""
        return sinusoids(positions, self.d_model, dtype, scale=self.scale)


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


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype, *, scale: float = 1.0) -> Tensor:
    """Return (*positions.shape, width) sinusoids: sin in the even channels, cos in the odd ones.

    The angle of channels 2i and 2i+1 is position · exp(-2i · ln(10000) / width). It is computed in
    float32 whatever ``dtype`` is, as published models do, and only the result times ``scale`` is
    cast: in float64 it would differ from theirs by up to 6e-7. Positions may be negative.
    """
    even = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float().unsqueeze(-1) * torch.exp(even * (-math.log(10000.0) / width))
    table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    return (table[..., :width] * scale).to(dtype)
