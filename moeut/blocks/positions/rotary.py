"""Rotary positions: queries and keys are turned by angles that grow with the position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeut.blocks.positions.base import PositionOptions, PositionTables, RotaryTables
from moeut.options import require


@dataclass(frozen=True, kw_only=True)
class Rotary(PositionOptions):
    """Rotary position embedding on the first channels of each head (RoPE)."""

    kind: ClassVar[str] = "rotary"
    fraction: float = 0.5
    """Share of the head's channels that are rotated; the width is rounded down to even."""
    base: float = 10000.0
    """Base of the wavelengths."""
    pairs: bool = False
    """Rotate neighbouring channels 2i and 2i+1 together, in place of i and i + n/2 of n."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.fraction <= 1.0, "fraction", self.fraction, "must be in (0, 1]")
        ok = 1.0 < self.base < math.inf
        require(ok, "base", self.base, "must be a finite number above 1")

    def width(self, head_size: int) -> int:
        """Return the number of rotated channels of a head; always even."""
        return int(self.fraction * head_size) // 2 * 2

    def check(self, head_size: int) -> None:
        """Raise ``OptionError`` if no channel is rotated."""
        require(
            self.width(head_size) > 0,
            "fraction",
            self.fraction,
            f"rotates no channel of a head of head_size={head_size}; it must reach 2 channels",
        )

    def tables(
        self,
        positions: Tensor,
        offset: int | None,
        num_keys: int,
        *,
        head_size: int,
        d_model: int,
        like: Tensor,
        key_positions: Tensor | None = None,
        training: bool = False,
    ) -> PositionTables:
        """Return the angles of the queries' positions, which are the new keys' too."""
        tables = rotary_tables(positions, self, head_size, like.dtype)
        if offset is None:  # (B, T, n/2) -> (B, 1, T, n/2): one table for all heads of a row
            cosine, sine = (table.unsqueeze(1) for table in (tables.cosine, tables.sine))
            tables = tables._replace(cosine=cosine, sine=sine)
        return PositionTables(rotary=tables)


def rotary_tables(
    positions: Tensor, options: Rotary, head_size: int, dtype: torch.dtype
) -> RotaryTables:
    """Return the tables (*positions.shape, n/2), in float32, or in float64 for a float64 model.

    The angle of channel pair i is position · base^(-2i/n) (arXiv 2104.09864).
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = rotary_frequencies(options, head_size, exact, positions.device)
    angles = positions.to(exact).unsqueeze(-1) * frequencies
    return RotaryTables(angles.cos(), angles.sin(), options.pairs)


def rotary_frequencies(
    options: Rotary, head_size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:  # (n/2,)
    """Return by how much the angle of each pair of channels grows from a position to the next."""
    width = options.width(head_size)
    even = torch.arange(0, width, 2, dtype=dtype, device=device)
    return 1.0 / options.base ** (even / width)


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate the first n channels of x (..., T, d) and pass the others through.

    Channel i is paired with channel i + n/2, or 2i with 2i+1. Computed in the tables' dtype where
    that is wider, and returned in x's.
    """
    cosine, sine, pairs = tables
    half = cosine.shape[-1]
    if pairs:
        turned, rest = x.split([2 * half, x.shape[-1] - 2 * half], dim=-1)
        first, second = turned.unflatten(-1, (half, 2)).unbind(dim=-1)
    else:
        first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    rotated_first = torch.addcmul(first * cosine, second, sine, value=-1)
    rotated_second = torch.addcmul(second * cosine, first, sine)
    if pairs:
        both = torch.stack((rotated_first, rotated_second), dim=-1).flatten(-2)
        return torch.cat((both.to(x.dtype), rest), dim=-1)
    return torch.cat((rotated_first.to(x.dtype), rotated_second.to(x.dtype), rest), dim=-1)
