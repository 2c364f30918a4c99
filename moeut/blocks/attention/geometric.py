"""Geometric attention: each query takes the nearest key that matches, and tells left from right.

With h the state of a query, q and k queries and keys of a head, and i the query's column:

    [back_i, front_i] = direction(h_i) · direction_scale
    l_ij = (q_i + u)·k_j · scale + (front_i if j > i else back_i) + bias
    A_ij = σ(l_ij) · Π over keys k nearer to i than j of (1 - σ(l_ik))

A token does not see itself, nor what a mask hides; neither is then among the nearer keys. Of two
keys at equal distance the right one counts as nearer. The weights of a query sum to at most 1: to
less where nothing matches, to 0 where there is nothing to see, as for a causal row's first token.
``normalise`` makes them sum to 1.

A position acts on the content q·k besides: rotary positions rotate q_i + u and k_j; what others
compute of q_i + u and k_j for a softmax, a sum of q·k / sqrt(d) and what they know of i and j, is
taken sqrt(d) · scale times.

Source: arXiv 2110.07732, section 3.2, and its code (RobertCsordas/ndr at da20530), whose sweeps do
not normalise.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.attention.base import AttentionContext
from moeut.blocks.attention.dense import DenseAttention, DenseMultiHeadAttention
from moeut.blocks.positions import PositionOptions, Rotary
from moeut.blocks.roles import Role, Roles, constant, decision, linear
from moeut.blocks.routing import RoutingContext
from moeut.ops import Linear, dropout


@dataclass(frozen=True, kw_only=True)
class GeometricAttention(DenseAttention):
    """Attention that takes the nearest matching token, with dense projections.

    It is one of self-attention: to an encoder's output there is no distance, so attention there is
    ``dense``, with the same heads and gates. ``dropout`` falls on the channels of keys before they
    meet the queries, as in the published code.
    """

    kind: ClassVar[str] = "geometric"
    counts_columns: ClassVar[bool] = True
    tells_order: ClassVar[bool] = True
    normalise: bool = False
    """Make the weights of a query sum to 1, as the published baseline without a gate does."""
    content_bias: bool = True
    """Learned vector per head that is added to the queries (u)."""

    def across(self) -> DenseAttention:
        """Return dense attention with the same heads and gates."""
        shared = (field.name for field in dataclasses.fields(DenseAttention))
        return DenseAttention(**{name: getattr(self, name) for name in shared})

    def build(
        self, d_model: int, position: PositionOptions | None = None
    ) -> GeometricMultiHeadAttention:
        """Return the module; ``position`` adds its own parameters."""
        return GeometricMultiHeadAttention(self, d_model, position)

    def projection_macs(self, d_model: int) -> tuple[int, int]:
        """Return the work of keys and values, and of queries and output, for one token each."""
        source_side, query_side = super().projection_macs(d_model)
        return source_side, query_side + 2 * self.num_heads * d_model


class GeometricMultiHeadAttention(DenseMultiHeadAttention):
    """Dense projections, and for each token and head how much it looks back and to the front.

    ``direction`` (2·H, D) has the rows [head, (back, front)].
    """

    def __init__(
        self, options: GeometricAttention, d_model: int, position: PositionOptions | None = None
    ) -> None:
        super().__init__(options, d_model, position)
        self.normalise = options.normalise
        self.direction = Linear(d_model, 2 * self.num_heads)
        self.content_bias = None
        if options.content_bias:
            self.content_bias = nn.Parameter(torch.empty(self.num_heads, self.head_size))
        # A vector that is not rotated would tell where a key is, not how far: so it is rotated too.
        self.biases_first = options.content_bias and isinstance(position, Rotary)
        self.has_dense_query = not self.biases_first
        self.scale = nn.Parameter(torch.empty(()))
        self.direction_scale = nn.Parameter(torch.empty(()))
        self.bias = nn.Parameter(torch.empty(()))

    def roles(self) -> Roles:
        """Return the role of each parameter; a head is drawn by itself, as published."""
        roles = super().roles()
        into_head = linear(self.d_model, self.head_size)
        roles |= dict.fromkeys(("query.weight", "key.weight"), into_head)
        roles |= {
            "value.weight": linear(self.d_model, self.value_head_size),
            "output.weight": linear(self.value_head_size, self.d_model),
            "direction.weight": decision(self.d_model, 2),
            "direction.bias": Role("bias", self.d_model, 2),
            "scale": constant(1.0 / math.sqrt(self.head_size)),
            "direction_scale": constant(1.0),
            "bias": constant(0.0),
        }
        if self.content_bias is not None:
            roles["content_bias"] = constant(0.0)
        return roles

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, routed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Weigh values by the nearest match: (B, H, T, v), and traced weights (B, H, T, K).

        ``query`` is (B, H, T, d), ``key`` (B, H, K, d), ``value`` (B, H, K, v), ``routed`` (B, T,
        D).
        """
        assert context.columns is not None, "geometric attention is one of self-attention"
        # (1 or B, 1, T, K): how far to the right of its query a key is.
        offset = torch.arange(key.shape[-2], device=key.device) - context.columns.unsqueeze(-1)
        offset = offset.unsqueeze(-3) if offset.dim() == 3 else offset[None, None]
        allowed = offset != 0
        if context.bias is not None:
            allowed = allowed & (context.bias == 0)
        elif context.is_causal:
            allowed = allowed & (offset < 0)
        logits = self._logits(query, key, offset, routed, context.distances)
        weights = geometric_weights(logits, allowed, offset, normalise=self.normalise)
        attended = weights.to(value.dtype) @ value
        return attended, weights if context.routing.trace else None

    def queries(self, routed: Tensor, decision: Tensor | None, context: RoutingContext) -> Tensor:
        """Project the routed view (B, T, D) to queries (B, T, H·d), with u where they rotate."""
        query = super().queries(routed, decision, context)
        if not self.biases_first:
            return query
        assert self.content_bias is not None
        return query + self.content_bias.to(query.dtype).flatten()

    def _logits(
        self, query: Tensor, key: Tensor, offset: Tensor, routed: Tensor, distances: Any
    ) -> Tensor:
        """Return logits (B, H, T, K), in float32 or, of float64 queries, in float64.

        Products of many 1 - σ magnify what rounding does to a logit.
        """
        exact = torch.float64 if query.dtype == torch.float64 else torch.float32
        if self.content_bias is not None and not self.biases_first:
            query = query + self.content_bias.to(query.dtype)[:, None]
        if self.dropout and self.training:
            key = dropout(key, self.dropout)
        if self.relative is None:
            content = query @ key.transpose(-1, -2)
        else:
            content = self.relative(query, key, distances, routed) * math.sqrt(self.head_size)
        content = content.to(exact) * self.scale
        direction = self.direction(routed).unflatten(-1, (self.num_heads, 2))  # (B, T, H, 2)
        direction = direction.to(exact).transpose(1, 2) * self.direction_scale
        back, front = direction.split(1, dim=-1)  # (B, H, T, 1) each
        return content + torch.where(offset > 0, front, back) + self.bias


def geometric_weights(
    logits: Tensor, allowed: Tensor, offset: Tensor, *, normalise: bool
) -> Tensor:  # (B, H, T, K)
    """Return σ(l_ij) · Π over nearer keys of (1 - σ(l_ik)), 0 where not ``allowed``.

    ``logits`` is (B, H, T, K); ``allowed`` bool and ``offset`` int64, columns of the key minus that
    of its query, broadcast to it.
    """
    order, rank = _nearest_first(offset)
    # Logarithms are summed along each query's keys from the nearest on. All are at most 0, so no
    # sum cancels, as a difference of sums along columns would.
    shut = F.logsigmoid(-logits).masked_fill(~allowed, 0.0).gather(-1, order.expand_as(logits))
    nearer = F.pad(shut[..., :-1], (1, 0)).cumsum(dim=-1).gather(-1, rank.expand_as(logits))
    # Lowest instead of -inf: a softmax over nothing would be NaN, and NaN spreads in gradients.
    lowest = torch.finfo(logits.dtype).min
    log_weights = (F.logsigmoid(logits) + nearer).masked_fill(~allowed, lowest)
    weights = log_weights.softmax(dim=-1) if normalise else log_weights.exp()
    return weights.masked_fill(~allowed, 0.0)


def _nearest_first(offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys of each query from the nearest on, and the place of each key among them.

    All are (…, T, K) int64. A query's own column comes first, and of two keys at equal distance the
    right one.
    """
    distance, is_right = offset.abs(), offset > 0
    # Keys on the left and on the right of the query, (…, T, 1).
    left, right = -offset[..., :1], offset[..., -1:]
    # Before a key stand the query's column, the nearer ones on the key's side, and on the other
    # side those that are nearer or, if that is the right side, as near: as far as it reaches.
    other = torch.where(is_right, torch.minimum(distance - 1, left), torch.minimum(distance, right))
    rank = distance + other
    return rank.argsort(dim=-1), rank
