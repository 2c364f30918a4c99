"""Value embeddings: a learned vector of each token that joins the values of self-attention.

With x (B, T, D) what attention reads, and row (G·d) the vector of the token in the layer's table,

    value_h ← value_h + 2 σ(w_h · x[first channels]) · row_h        for each of G key heads h

(sandyresearch/parcae at dee8363, after modded-nanogpt).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Role, Roles, linear
from moeut.blocks.routing import router_logits
from moeut.options import Options, derived, require, require_positive


@dataclass(frozen=True, kw_only=True)
class ValueEmbeddings(Options):
    """Which layers have value embeddings."""

    layers: Literal["none", "alternate", "listed"] = "none"
    """``alternate``: every second layer, the last one included; ``listed``: those of ``list``."""
    list: tuple[int, ...] = derived()
    """Numbers of the layers, from 0: prelude, group and coda in this order, the group once."""
    channels: int = 32
    """First channels of what attention reads that the gate reads, at most all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "channels")
        given: tuple[int, ...] | None = self.list
        if self.layers == "listed":
            require(given is not None, "list", given, "missing; layers=listed needs it")
        else:
            said = f"has no effect with layers={self.layers}"
            require(given is None or given == (), "list", given, said)
            object.__setattr__(self, "list", ())

    def of(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers that have them, of ``num_layers``."""
        if self.layers == "alternate":
            return tuple(range((num_layers - 1) % 2, num_layers, 2))
        return self.list


class ValueEmbedding(nn.Module):
    """Of one layer: ``weight`` (vocabulary, G·d), and ``gate`` (G, channels)."""

    def __init__(self, vocabulary_size: int, width: int, num_heads: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary_size, width))
        self.gate = nn.Parameter(torch.empty(num_heads, channels))

    def roles(self) -> Roles:
        """Return the roles of vectors and gate."""
        (rows, width), (heads, channels) = self.weight.shape, self.gate.shape
        return {"weight": Role("embedding", width, rows), "gate": linear(channels, heads)}

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:  # (B, G, T, d)
        """Return what joins the values of ``tokens`` (B, T), whose attention reads x (B, T, D)."""
        heads, channels = self.gate.shape
        rows = nn.functional.embedding(tokens, self.weight).unflatten(-1, (heads, -1))
        gate = 2.0 * router_logits(x[..., :channels], self.gate).sigmoid()  # (B, T, G)
        return (gate.unsqueeze(-1).to(rows.dtype) * rows).transpose(1, 2)
