"""FIRE: a bias of the logits that a small network reads off a distance, relative to its query."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from moeut.blocks.packing import Packing
from moeut.blocks.positions.base import LogitPosition, PositionOptions, PositionTables
from moeut.blocks.roles import Role, Roles, constant
from moeut.ops import Linear
from moeut.options import require, require_finite, require_positive


@dataclass(frozen=True, kw_only=True)
class Fire(PositionOptions):
    """A learned bias for each head, from distances relative to the query's position (FIRE).

    It acts in self-attention; cross-attention has none. Its network runs once for a whole batch,
    which counts of multiply-accumulates leave out, as they do relative distances.
    """

    kind: ClassVar[str] = "fire"
    hidden_size: int = 32
    """Hidden units of the network from a distance to a bias."""
    initial_scale: float = 0.1
    """Initial value of the factor on distances inside the logarithm (c)."""
    threshold: float = 512.0
    """Position up to which distances are relative to one learned length (L, times a learned
    factor)."""
    thresholds: tuple[float, ...] = ()
    """The threshold of each distinct layer, where they differ; empty: all have ``threshold``."""
    max_length: int = 0
    """In training, take the positions of a row from this many, a random choice in order, another
    one at each pass; 0: take 0, 1, 2, … ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size")
        require_finite(self, "initial_scale", "threshold")
        ok = self.max_length >= 0
        require(ok, "max_length", self.max_length, "must be a whole number of at least 0")
        ok = all(0.0 <= one < math.inf for one in self.thresholds)
        require(ok, "thresholds", self.thresholds, "must be finite numbers of at least 0")

    def of_layer(self, layer: int) -> Fire:
        """Return the options of a distinct layer, which has one threshold."""
        if not self.thresholds:
            return self
        ok = layer < len(self.thresholds)
        require(ok, "thresholds", self.thresholds, "must be as many as there are distinct layers")
        return dataclasses.replace(self, threshold=self.thresholds[layer], thresholds=())

    def build_relative(self, num_heads: int, head_size: int, d_model: int) -> FirePosition:
        """Return the network and its two scalars."""
        return FirePosition(self, num_heads, head_size)

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
        """Return the positions of queries and keys."""
        if key_positions is not None:  # all documents at once, so queries and keys are the same
            return PositionTables(distances=FirePlaces(key_positions, key_positions))
        keys = torch.arange(num_keys, device=like.device)
        if training and positions.dim() == 1 and positions.shape[0] == num_keys < self.max_length:
            chosen = torch.randperm(self.max_length, device=like.device)[:num_keys]
            keys = positions = chosen.sort().values
        return PositionTables(distances=FirePlaces(positions, keys))


class FirePlaces(NamedTuple):
    """Where queries and keys stand."""

    queries: Tensor
    """(T,) or (B, T)"""

    keys: Tensor
    """(K,) or (B, K)"""

    def packed(self, packing: Packing) -> FirePlaces:
        """Return the places of packed queries."""
        batch, length, _ = packing.shape
        rows = packing.of_rows(self.queries.expand(batch, length))
        keys = self.keys if self.keys.dim() == 1 else packing.of_rows(self.keys)
        return FirePlaces(rows.gather(1, packing.columns()), keys)


class FirePosition(LogitPosition):
    """Adds MLP(log(c·|i - j| + 1) / (log(c·max(i, m·L) + 1) + 1e-6)) to the logits (FIRE).

    For the query at i and the key at j, with learned c and m and a fixed L (arXiv 2310.04418). Of
    negative c and m the magnitude counts. ``up`` is (F, 1), ``down`` (H, F).
    """

    def __init__(self, options: Fire, heads: int, head_size: int) -> None:
        super().__init__()
        self.options, self.head_size = options, head_size
        self.scale = nn.Parameter(torch.empty(()))
        self.factor = nn.Parameter(torch.empty(()))
        self.up = Linear(1, options.hidden_size)
        self.down = Linear(options.hidden_size, heads)

    def roles(self) -> Roles:
        """Return the roles; the learned length starts as configured."""
        hidden, heads = self.down.in_features, self.down.out_features
        return {
            "scale": constant(self.options.initial_scale),
            "factor": constant(1.0),
            "up.weight": Role("up", 1, hidden, is_matrix=False),
            "up.bias": Role("bias", 1, hidden),
            "down.weight": Role("weight", hidden, heads, is_matrix=False),
            "down.bias": Role("bias", hidden, heads),
        }

    def forward(self, query: Tensor, key: Tensor, distances: FirePlaces, routed: Tensor) -> Tensor:
        """Return logits (B, H, T, K): q_i·k_j / sqrt(d) and the bias of their places."""
        content = query @ key.transpose(-1, -2) * self.head_size**-0.5
        bias = self.bias(distances, content.dtype)
        times = query.shape[1] // bias.shape[1]
        # Queries of several heads of one key head share its bias.
        return content + (bias if times == 1 else bias.repeat_interleave(times, dim=1))

    def bias(self, places: FirePlaces, dtype: torch.dtype) -> Tensor:  # (1 or B, H, T, K)
        """Return what each head adds to the logits."""
        queries = places.queries.to(dtype).unsqueeze(-1)  # (…, T, 1)
        keys = places.keys.to(dtype).unsqueeze(-2)  # (…, 1, K)
        length = torch.maximum(queries, (self.factor * self.options.threshold).abs())
        near = ((self.scale * (queries - keys)).abs() + 1).log()
        relative = near / (((self.scale * length).abs() + 1).log() + 1e-6)
        bias = self.down(self.up(relative.unsqueeze(-1)).relu())  # (…, T, K, H)
        bias = bias.unsqueeze(0) if bias.dim() == 3 else bias
        return bias.permute(0, 3, 1, 2)
