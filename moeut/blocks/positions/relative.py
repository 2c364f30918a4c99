"""Relative positions of Transformer-XL, and their gate to absolute ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from moeut.blocks.packing import Packing
from moeut.blocks.positions.added import sinusoids
from moeut.blocks.positions.base import (
    LogitPosition,
    PositionOptions,
    PositionTables,
    RelativeTerms,
)
from moeut.blocks.roles import Role, Roles, constant, decision, linear
from moeut.ops import Linear


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
        training: bool = False,
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

    def packed(self, packing: Packing) -> Distances:
        """Return the distances of packed queries."""
        key_positions = self.key_positions
        if key_positions is not None:
            key_positions = packing.of_rows(key_positions)
        if self.columns is not None:
            columns = packing.of_queries(self.columns)
        else:
            length = packing.shape[1]
            keys = torch.arange(self.table.shape[0] - length, device=self.table.device)
            columns = keys - packing.columns().unsqueeze(-1) + length - 1  # (R, N, K)
            columns = columns.unsqueeze(1)
        return self._replace(columns=columns, key_positions=key_positions)


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


class RelativePosition(LogitPosition):
    """The learned part of Transformer-XL's relative attention (arXiv 1901.02860).

    ``absolute_gate`` adds the gate between distances and positions of arXiv 2110.07732. Queries of
    several heads of one key head share what that head has learned.
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
            roles["gate.weight"] = decision(self.gate.in_features, self.gate.out_features)
            roles["gate.bias"] = Role("bias", self.gate.in_features, self.gate.out_features)
        return roles

    def forward(self, query: Tensor, key: Tensor, distances: Distances, routed: Tensor) -> Tensor:
        """Return logits (B, H, T, K): [(q_i + u)·k_j + (q_i + w)·r_{j-i}] · scale.

        u and w are the content and position biases, r the projected sinusoid of a distance. With a
        gate, a = σ(gate(h_i)) of the state h_i in ``routed`` (B, T, D), r_{j-i} becomes
        a · r_{j-i} + (1 - a) · r_j.
        """
        head_size = self.content_bias.shape[1]
        content = (query + self._share(self.content_bias, query)[:, None]) @ key.transpose(-1, -2)
        asking = query + self._share(self.position_bias, query)[:, None]
        position = self._scores(asking, distances.table)
        position = align_distances(position, distances, key.shape[-2])
        if self.gate is not None:
            assert distances.absolute is not None
            absolute = self._scores(asking, distances.absolute)  # (B, H, T, K), by position
            if distances.key_positions is not None:
                absolute = absolute.gather(
                    -1, distances.key_positions[:, None, None].expand_as(absolute)
                )
            gate = self._share(self.gate(routed).sigmoid().transpose(1, 2), query, dim=1)
            gate = gate.unsqueeze(-1)  # (B, H, T, 1)
            position = position * gate + absolute * (1 - gate)
        return (content + position) * (head_size**-0.5 if self.scale is None else self.scale)

    def terms(
        self, query: Tensor, distances: Distances
    ) -> tuple[Tensor, RelativeTerms, float] | None:
        """Return queries (B, H, T, d), what is added to them, and the scale of the logits.

        None where the logits are more than one operation knows.
        """
        if self.gate is not None or distances.columns is not None:
            return None
        content = self._share(self.content_bias, query)
        position = self._share(self.position_bias, query)
        projected = self._share(self._project(distances.table), query, dim=1)
        scale = content.shape[1] ** -0.5
        if self.scale is not None:
            query, content, position = (one * self.scale for one in (query, content, position))
            scale = 1.0
        return query, RelativeTerms(content, position, projected), scale

    def _project(self, table: Tensor) -> Tensor:  # (W, H, d)
        return self.projection(table).unflatten(-1, self.content_bias.shape)

    def _scores(self, asking: Tensor, table: Tensor) -> Tensor:
        """Return the products of (B, H, T, d) with the projected ``table`` (W, D): (B, H, T, W)."""
        return asking @ self._share(self._project(table), asking, dim=1).permute(1, 2, 0)

    def _share(self, of_heads: Tensor, query: Tensor, dim: int = 0) -> Tensor:
        """Return what each of the query's heads (B, H, T, d) reads, of the heads in ``dim``."""
        times = query.shape[1] // self.content_bias.shape[0]
        return of_heads if times == 1 else of_heads.repeat_interleave(times, dim=dim)
