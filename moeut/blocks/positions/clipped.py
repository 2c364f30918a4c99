"""Clipped relative positions: a learned vector for each distance up to a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from moeut.blocks.packing import Packing
from moeut.blocks.positions.base import LogitPosition, PositionOptions, PositionTables
from moeut.blocks.roles import Roles, linear
from moeut.options import require_positive


@dataclass(frozen=True, kw_only=True)
class Clipped(PositionOptions):
    """A learned vector for each head and distance, which queries meet; far ones share the last.

    It acts in self-attention; cross-attention has none.
    """

    kind: ClassVar[str] = "clipped"
    max_distance: int = 64
    """Distances from which on all are one (M)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_distance")

    def build_relative(self, num_heads: int, head_size: int, d_model: int) -> ClippedPosition:
        """Return the vectors."""
        return ClippedPosition(self.max_distance, num_heads, head_size)

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
        """Return the number of the vector of each query and key."""
        keys = torch.arange(num_keys, device=like.device)
        most = self.max_distance - 1
        distance = (keys - positions.unsqueeze(-1)).clamp(-most, most) + self.max_distance
        # (T, K), or (B, T, K) where rows stand at different columns; one more dimension for heads.
        numbers = distance[None, None] if offset is not None else distance.unsqueeze(1)
        return PositionTables(distances=ClippedPlaces(numbers))

    def logit_macs(self, *, d_model: int, num_heads: int, width: int, length: int) -> int:
        """Count a query's products with the vectors of all distances."""
        return width * (2 * self.max_distance + 1)


class ClippedPlaces(NamedTuple):
    """Which vector each query and key has."""

    numbers: Tensor
    """(1 or B, 1, T, K)"""

    def packed(self, packing: Packing) -> ClippedPlaces:
        """Return the numbers of packed queries."""
        return ClippedPlaces(packing.of_queries(self.numbers))


class ClippedPosition(LogitPosition):
    """Logits q·k / sqrt(d) + q·r[clip(j - i)] / d^(1/4) (after arXiv 1803.02155).

    ``weight`` (H, d, 2·M + 1) has the vectors r of distances -M … M, of which the outermost are
    never read: key minus query is clipped to ± (M - 1). That, and the power of d, is as in the
    Sparse Universal Transformer, which scales queries and keys alike before they meet. Queries of
    several heads of one key head share its vectors.
    """

    def __init__(self, max_distance: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, head_size, 2 * max_distance + 1))

    def roles(self) -> Roles:
        """Return the role of the vectors."""
        return {"weight": linear(*self.weight.shape[1:])._replace(is_matrix=False)}

    def forward(
        self, query: Tensor, key: Tensor, distances: ClippedPlaces, routed: Tensor
    ) -> Tensor:
        """Return logits (B, H, T, K)."""
        heads, head_size, _ = self.weight.shape
        query = query * head_size**-0.25
        weight = self.weight.repeat_interleave(query.shape[1] // heads, dim=0)
        content = query @ (key * head_size**-0.25).transpose(-1, -2)
        return content + (query @ weight).gather(-1, distances.numbers.expand_as(content))
