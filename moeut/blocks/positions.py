"""Position schemes: their options, sinusoids, rotary tables and relative distances.

Shapes: B rows, T queries, K keys, H heads, d head size, D model, W distances. A *position* is a
column of the sequence, counted from 0 at its first token. ``positions`` is (T,) where all rows
agree and (B, T) where rows of different length are decoded together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Role, Roles, constant, linear
from moeut.ops import Linear
from moeut.options import Options, require, require_positive


class PositionTables(NamedTuple):
    """What all attentions of one pass need to know of positions; at most one is there."""

    rotary: RotaryTables | None = None
    distances: Distances | None = None


@dataclass(frozen=True, kw_only=True)
class PositionOptions(Options):
    """What every kind of position has; a scheme overrides the places where it acts."""

    def check(self, head_size: int) -> None:
        """Raise ``OptionError`` where heads of ``head_size`` channels do not serve."""

    def build_absolute(self, d_model: int) -> AbsolutePositions | None:
        """Return the module that adds positions to the embedded tokens, if the scheme does."""
        return None

    def build_relative(
        self, num_heads: int, head_size: int, d_model: int
    ) -> RelativePosition | None:
        """Return the module that a self-attention computes its logits with, if not the usual."""
        return None

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
    ) -> PositionTables:
        """Return what the attentions of a pass share.

        ``positions`` (T,) or (B, T) are those of the queries; ``offset`` is the first of them where
        all rows agree, and None where they do not; ``num_keys`` columns may be looked at. ``like``
        gives dtype and device. ``key_positions`` (B, K) are given where a column is not a key's
        absolute position: in rows of several documents.
        """
        return PositionTables()

    def logit_macs(self, *, d_model: int, num_heads: int, width: int, length: int) -> int:
        """Return the multiply-accumulates that the scheme adds to a layer for one token."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NoPosition(PositionOptions):
    """No position information besides the causal mask."""

    kind: ClassVar[str] = "none"


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
    ) -> PositionTables:
        """Return the angles of the queries' positions, which are the new keys' too."""
        tables = rotary_tables(positions, self, head_size, like.dtype)
        if offset is None:  # (B, T, n/2) -> (B, 1, T, n/2): one table for all heads of a row
            cosine, sine = (table.unsqueeze(1) for table in (tables.cosine, tables.sine))
            tables = tables._replace(cosine=cosine, sine=sine)
        return PositionTables(rotary=tables)


@dataclass(frozen=True, kw_only=True)
class Relative(PositionOptions):
    """Transformer-XL relative positions in self-attention; cross-attention has none."""

    kind: ClassVar[str] = "relative"
    learned_scale: bool = False
    """Logit scale as a learned scalar, initialised at 1/sqrt(head_size)."""
    absolute_gate: bool = False
    """Let each query and head mix, by a gate, distance with the key's absolute position, as the
    gated Transformer of arXiv 2110.07732 does."""

    def build_relative(self, num_heads: int, head_size: int, d_model: int) -> RelativePosition:
        """Return the biases, the projection of distances, and the gate if there is one."""
        return RelativePosition(
            num_heads,
            head_size,
            d_model,
            learned_scale=self.learned_scale,
            absolute_gate=self.absolute_gate,
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
    ) -> PositionTables:
        """Return the distances between queries and keys."""
        if offset is None:
            distances = ragged_distances(positions, num_keys, d_model, like)
        else:
            distances = regular_distances(positions.shape[-1], num_keys, offset, d_model, like)
        if self.absolute_gate:
            columns = torch.arange(num_keys, device=like.device)
            absolute = sinusoids(columns, d_model, like.dtype)
            distances = distances._replace(absolute=absolute, key_positions=key_positions)
        return PositionTables(distances=distances)

    def logit_macs(self, *, d_model: int, num_heads: int, width: int, length: int) -> int:
        """Count a query's gates and its scores; a batch shares the projection of distances."""
        gated = d_model * num_heads + width * length if self.absolute_gate else 0
        return width * (2 * length - 1) + gated


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


@dataclass(frozen=True, kw_only=True)
class Learned(PositionOptions):
    """A learned vector per absolute position, added to the embedding."""

    kind: ClassVar[str] = "learned"
    max_length: int = 1024
    """Positions that have a vector; a longer sequence is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_length")

    def build_absolute(self, d_model: int) -> LearnedPositions:
        """Return the vectors."""
        return LearnedPositions(self.max_length, d_model)


POSITION: Mapping[str, type[PositionOptions]] = {
    "none": NoPosition,
    "rotary": Rotary,
    "relative": Relative,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
}


# --- absolute positions -----------------------------------------------------------------


class AbsolutePositions(nn.Module):
    """What is added to the embedded tokens."""

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:  # (*positions.shape, D)
        """Return the vectors of ``positions`` (T,) or (B, T)."""
        raise NotImplementedError

    def check_length(self, length: int) -> None:
        """Raise ``ValueError`` if a sequence of ``length`` tokens has positions without one."""


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

    def __init__(self, max_length: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, d_model))

    def roles(self) -> Roles:
        """Return the role of the vectors, which start as token embeddings do."""
        max_length, d_model = self.weight.shape
        return {"weight": Role("embedding", d_model, max_length)}

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
                f"position.max_length={self.weight.shape[0]}"
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


# --- rotary positions -------------------------------------------------------------------


class RotaryTables(NamedTuple):
    """Cosines and sines (..., T, n/2) of the angles that rotate n channels of a head."""

    cosine: Tensor
    sine: Tensor
    pairs: bool = False
    """Whether channels 2i and 2i+1 are rotated together, not i and i + n/2."""


def rotary_tables(
    positions: Tensor, options: Rotary, head_size: int, dtype: torch.dtype
) -> RotaryTables:
    """Return the tables (*positions.shape, n/2), in float32, or in float64 for a float64 model.

    The angle of channel pair i is position · base^(-2i/n) (arXiv 2104.09864).
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    width = options.width(head_size)
    even = torch.arange(0, width, 2, dtype=exact, device=positions.device)
    frequencies = 1.0 / options.base ** (even / width)
    angles = positions.to(exact).unsqueeze(-1) * frequencies
    return RotaryTables(angles.cos(), angles.sin(), options.pairs)


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


# --- relative positions -----------------------------------------------------------------


class Distances(NamedTuple):
    """Which relative distances a pass needs, and where each query finds its own among them."""

    table: Tensor
    """(W, D) sinusoids of the distances key - query, ascending."""

    columns: Tensor | None
    """(B, 1, T, K) column in ``table`` for each query and key, or None: the regular layout, where
    query t and key j are column j - t + T - 1."""

    absolute: Tensor | None = None
    """(K, D) sinusoids of the positions 0 … K-1, where keys are told by their positions too."""

    key_positions: Tensor | None = None
    """(B, K) position of each key; None: its column."""


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


class RelativePosition(nn.Module):
    """The learned part of Transformer-XL's relative attention (arXiv 1901.02860).

    ``absolute_gate`` adds the gate between distances and positions of arXiv 2110.07732.
    """

    def __init__(
        self,
        heads: int,
        head_size: int,
        d_model: int,
        *,
        learned_scale: bool,
        absolute_gate: bool = False,
    ) -> None:
        super().__init__()
        self.content_bias = nn.Parameter(torch.empty(heads, head_size))
        self.position_bias = nn.Parameter(torch.empty(heads, head_size))
        self.projection = Linear(d_model, heads * head_size, bias=False)
        self.scale = nn.Parameter(torch.empty(())) if learned_scale else None
        self.gate = Linear(d_model, heads) if absolute_gate else None

    def roles(self) -> Roles:
        """Return the roles: biases start at 0, a learned scale at 1/sqrt(head size)."""
        roles = {
            "content_bias": constant(0.0),
            "position_bias": constant(0.0),
            "projection.weight": linear(self.projection.in_features, self.projection.out_features),
        }
        if self.scale is not None:
            roles["scale"] = constant(1.0 / math.sqrt(self.content_bias.shape[1]))
        if self.gate is not None:
            roles["gate.weight"] = linear(self.gate.in_features, self.gate.out_features)
            roles["gate.bias"] = Role("bias", self.gate.in_features, self.gate.out_features)
        return roles

    def forward(self, query: Tensor, key: Tensor, distances: Distances, routed: Tensor) -> Tensor:
        """Return logits (B, H, T, K): [(q_i + u)·k_j + (q_i + w)·r_{j-i}] · scale.

        u and w are the content and position biases, r the projected sinusoid of a distance. With a
        gate, a = σ(gate(h_i)) of the state h_i in ``routed`` (B, T, D), r_{j-i} becomes
        a · r_{j-i} + (1 - a) · r_j.
        """
        head_size = self.content_bias.shape[1]
        content = (query + self.content_bias[:, None]) @ key.transpose(-1, -2)
        asking = query + self.position_bias[:, None]
        position = self._scores(asking, distances.table)
        position = align_distances(position, distances, key.shape[-2])
        if self.gate is not None:
            assert distances.absolute is not None
            absolute = self._scores(asking, distances.absolute)  # (B, H, T, K), by position
            if distances.key_positions is not None:
                absolute = absolute.gather(
                    -1, distances.key_positions[:, None, None].expand_as(absolute)
                )
            gate = self.gate(routed).sigmoid().transpose(1, 2).unsqueeze(-1)  # (B, H, T, 1)
            position = position * gate + absolute * (1 - gate)
        return (content + position) * (head_size**-0.5 if self.scale is None else self.scale)

    def _scores(self, asking: Tensor, table: Tensor) -> Tensor:
        """Return the products of (B, H, T, d) with the projected ``table`` (W, D): (B, H, T, W)."""
        projected = self.projection(table).unflatten(-1, self.content_bias.shape)  # (W, H, d)
        return asking @ projected.permute(1, 2, 0)
