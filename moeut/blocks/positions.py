"""Position schemes: sinusoids, rotary tables, and the bookkeeping of relative distances.

Shapes: B rows, T queries, K keys, H heads, d head size. A *position* is a column of the sequence,
counted from 0 at its first token. ``positions`` is (T,) where all rows agree and (B, T) where rows
of different length are decoded together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moeut.config import Rotary


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


class LearnedPositions(nn.Module):
    """One learned vector per position: ``weight`` (max_length, D)."""

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, d_model))

    def forward(self, positions: Tensor) -> Tensor:
        """Return the vectors of ``positions``; those past the end get the last one.

        Only padding may lie past the end: ``check_length`` refuses a longer sequence.
        """
        return nn.functional.embedding(positions.clamp(max=self.weight.shape[0] - 1), self.weight)

    def check_length(self, length: int) -> None:
        """Raise ValueError if a sequence of ``length`` tokens has positions without a vector."""
        if length > self.weight.shape[0]:
            raise ValueError(
                f"sequence length {length}: learned positions end at "
                f"position.max_length={self.weight.shape[0]}"
            )


class RotaryTables(NamedTuple):
    """Cosines and sines (..., T, n/2) of the angles that rotate n channels of a head."""

    cosine: Tensor
    sine: Tensor


def rotary_tables(
    positions: Tensor,
    position: Rotary,
    head_size: int,
    dtype: torch.dtype,
    *,
    float32_frequencies: bool = False,
) -> RotaryTables:
    """Return the tables for ``positions``, in float32, or in float64 for a float64 model.

    The angle of channel pair i is position · base^(-2i/n) (arXiv 2104.09864);
    ``float32_frequencies`` rounds that power to float32 even in a float64 model.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    width = position.width(head_size)
    rounded = torch.float32 if float32_frequencies else exact
    even = torch.arange(0, width, 2, dtype=rounded, device=positions.device)
    frequencies = 1.0 / position.base ** (even / width)
    angles = positions.to(exact).unsqueeze(-1) * frequencies.to(exact)
    return RotaryTables(angles.cos(), angles.sin())


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate the first n channels of x (..., T, d) and pass the others through.

    Channel i is paired with channel i + n/2 (the rotate-half form). Computed in the tables' dtype
    where that is wider, and returned in x's.
    """
    cosine, sine = tables
    half = cosine.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    rotated_first = torch.addcmul(first * cosine, second, sine, value=-1)
    rotated_second = torch.addcmul(second * cosine, first, sine)
    return torch.cat((rotated_first.to(x.dtype), rotated_second.to(x.dtype), rest), dim=-1)


class Distances(NamedTuple):
    """Which relative distances a pass needs, and where each query finds its own among them."""

    table: Tensor
    """(W, D) sinusoids of the distances key - query, ascending."""

    columns: Tensor | None
    """(B, 1, T, K) column in ``table`` for each query and key, or None: the regular layout, where
    query t and key j are column j - t + T - 1."""


def regular_distances(
    num_queries: int, num_keys: int, offset: int, d_model: int, like: Tensor
) -> Distances:
    """Return the distances of queries offset … offset+T-1 to keys 0 … K-1, the same in all rows.

    There is one more at the end than needed, so that ``align_distances`` can reshape.
    """
    values = torch.arange(1 - offset - num_queries, num_keys - offset + 1, device=like.device)
    return Distances(sinusoids(values, d_model, like.dtype), None)


def ragged_distances(positions: Tensor, num_keys: int, d_model: int, like: Tensor) -> Distances:
    """Return the distances of queries at ``positions`` (B, T), another place in every row."""
    span = num_keys + positions.shape[1]
    values = torch.arange(-span, num_keys, device=like.device)
    keys = torch.arange(num_keys, device=like.device)
    columns = keys - positions.unsqueeze(-1) + span  # (B, T, K)
    return Distances(sinusoids(values, d_model, like.dtype), columns.unsqueeze(1))


def align_distances(scores: Tensor, distances: Distances, num_keys: int) -> Tensor:
    """Pick from scores (B, H, T, W), one per distance, those of each key: (B, H, T, K)."""
    if distances.columns is not None:
        batch, heads, num_queries, _ = scores.shape
        return scores.gather(-1, distances.columns.expand(batch, heads, num_queries, num_keys))
    # In the flattened (T · W) scores, query t's key j is at t · (W - 1) + j + T - 1: a slice and
    # a reshape do what a gather would, without its slow backward.
    num_queries, width = scores.shape[-2:]
    start = num_queries - 1
    rows = scores.flatten(-2)[..., start : start + num_queries * (width - 1)]
    return rows.unflatten(-1, (num_queries, width - 1))[..., :num_keys]
