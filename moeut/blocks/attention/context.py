"""What an attention is told of a pass, and what it gives back.

Shapes: B rows, T queries, K keys, H heads, G key heads, d head size, D model; of packed tokens see
``moeut.blocks.packing``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from moeut.blocks import masks
from moeut.blocks.packing import Packing
from moeut.blocks.positions import Distances, RotaryTables
from moeut.blocks.routing import RouterRecord, RoutingContext


@dataclass(frozen=True)
class AttentionContext:
    """What all applications of one forward pass share: masks, positions and routing."""

    bias: Tensor | None = None
    """(1 or B, 1, T or 1, K) added to the logits: 0, or -inf where attention is not allowed."""

    is_causal: bool = False
    """Causal with queries and keys in the same columns, so that no bias is needed."""

    rotary: RotaryTables | None = None
    """Angles of the positions of queries and new keys, which are the same tokens."""

    distances: Distances | None = None
    """Distances between queries and keys, for a relative position."""

    columns: Tensor | None = None
    """(T,) or (B, T) column of each query among the keys; None where keys are another sequence."""

    routing: RoutingContext = field(default_factory=RoutingContext)
    """The routing context of the queries, and of keys and values unless they have their own."""

    routing_of_source: RoutingContext | None = None
    """The routing context of keys and values, where they are computed for other tokens."""

    visible: Tensor | None = None
    """(B, K) True at the keys that queries see, where tokens that take part see one another alone;
    ``bias`` says so too."""

    packing: Packing | None = None
    """How the tokens that are read are packed into one row (1, M, D); None: they are in rows."""

    of_source: AttentionContext | None = None
    """Where and how packed the tokens are that keys and values are taken from, if not the queries'.
    """

    def placed(self, packing: Packing | None) -> AttentionContext:
        """Return the context of tokens that are projected and rotated, but look at nothing."""
        rotary = self.rotary
        if rotary is not None and packing is not None:
            rotary = RotaryTables(
                packing.table(rotary.cosine), packing.table(rotary.sine), rotary.pairs
            )
        return replace(self, rotary=rotary, packing=packing)

    def packed(
        self, packing: Packing, positions: Tensor, num_keys: int, like: Tensor
    ) -> AttentionContext:
        """Return what packed queries need to know of masks and positions, but for the routing.

        This is the context of all tokens, which stand at ``positions`` (T,) or (B, T) among
        ``num_keys`` columns; ``like`` gives dtype and device.
        """
        batch, length, width = packing.shape
        if packing.is_empty:
            return replace(self, packing=packing, rotary=None, distances=None)
        columns = packing.columns()  # (R, N), among the tokens of this pass
        positions = packing.of_rows(positions.expand(batch, length)).gather(1, columns)
        rotary, distances = self.placed(packing).rotary, self.distances
        if distances is not None:
            distances = distances.packed(packing)
        is_causal, bias = False, self.bias
        if bias is not None:
            has_queries = bias.shape[2] == length > 1
            bias = packing.of_queries(bias) if has_queries else packing.of_rows(bias)
        if packing.is_alone:
            is_causal = self.is_causal
            if bias is not None:
                bias = bias.gather(3, columns[:, None, None].expand(-1, -1, bias.shape[2], -1))
            if packing.filled is not None and not is_causal:  # empty slots are the last of a row
                bias = _sum(bias, masks.real_keys(packing.filled), like)
            positions = torch.arange(width, device=like.device)
        elif self.is_causal:
            bias = _sum(None, masks.causal(positions, num_keys), like)
        return replace(
            self,
            bias=bias,
            is_causal=is_causal,
            rotary=rotary,
            distances=distances,
            columns=positions,
            packing=packing,
        )

    def packed_across(self, packing: Packing, routing: RoutingContext) -> AttentionContext:
        """Return what packed queries need to know to read an encoder's output."""
        bias = None if self.bias is None else packing.of_rows(self.bias)
        return replace(self, bias=bias, routing=routing, packing=packing)

    def hiding_others(self, visible: Tensor, like: Tensor) -> AttentionContext:
        """Return the context where queries see the ``visible`` (B, K) keys alone, and themselves.

        So a query that takes no part has a key to look at: what it computes is not used, but a
        softmax over nothing would be NaN.
        """
        if self.packing is not None and self.packing.is_empty:
            return self  # no query: the bias is still that of all rows
        assert self.columns is not None
        keys = torch.arange(visible.shape[1], device=visible.device)
        oneself = keys == self.columns.unsqueeze(-1)  # (T, K) or (R, N, K)
        rows = visible if self.packing is None else self.packing.of_rows(visible)
        bias = _sum(self.bias, rows[:, None, None], like)
        if self.bias is None and self.is_causal:
            bias = _sum(bias, masks.causal(self.columns, visible.shape[1]), like)
        bias = bias.masked_fill(oneself if oneself.dim() == 2 else oneself.unsqueeze(1), 0.0)
        return replace(self, bias=bias, is_causal=False, visible=visible)


class Source(NamedTuple):
    """Projected keys and values that queries from elsewhere attend to."""

    key: Tensor
    """(B, G, K, d)"""

    value: Tensor
    """(B, G, K, d)"""

    record: RouterRecord | None = None
    """What the value router decided."""

    def select(self, rows: Tensor) -> Source:
        """Keep the given rows of the batch, (N,) int64."""
        return Source(self.key.index_select(0, rows), self.value.index_select(0, rows))


class AttentionOutput(NamedTuple):
    """What an attention returns."""

    output: Tensor
    """(B, T, D)"""

    routers: dict[str, RouterRecord]
    """What its routers decided, by their names."""

    weights: Tensor | None
    """(B, H, T, K) after the softmax, traced only."""

    kept: Source | None = None
    """Keys and values that later applications carry forward, if asked for."""


class Participation(NamedTuple):
    """Which tokens take part in an application, and what the others have left behind."""

    active: Tensor | None = None
    """(B, T) True at tokens that take part; None: all do."""

    held: Source | None = None
    """Keys and values of the last application of the same layer, for tokens that do not."""

    stored: int | None = None
    """Application whose keys and values are read in place of new ones, those that are ``held``."""

    is_shared: bool = False
    """Whether what is held is of the first repeat, which later ones share."""

    def merge(
        self, key: Tensor, value: Tensor, packing: Packing | None = None, *, in_place: bool = False
    ) -> Source:
        """Return new keys and values of active tokens beside the held of others, (B, G, T, d).

        New ones are (B, G, T, d) or packed (1, G, M, d); if packed tokens see one another alone,
        their keys and values are returned by rows, (B, G, N, d). ``in_place``: packed ones may be
        written into what was held.
        """
        held = self.held
        if packing is not None:
            if packing.is_alone:
                return Source(packing.spread(key), packing.spread(value))
            held_key, held_value = (None, None) if held is None else (held.key, held.value)
            return Source(
                packing.hold(key, held_key, in_place=in_place),
                packing.hold(value, held_value, in_place=in_place),
            )
        if self.active is None or held is None:
            return Source(key, value)
        here = self.active[:, None, :, None]
        return Source(torch.where(here, key, held.key), torch.where(here, value, held.value))


class KeyValueStore(Protocol):
    """Keys and values of earlier tokens, which a pass adds to."""

    def store(self, application: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take up new keys and values (B, G, T, d); return those of all tokens (B, G, K, d).

        ``application`` is the number of the layer's application in the pass: a layer that is
        applied many times has as many keys of each token.
        """

    def load(self, application: int) -> tuple[Tensor, Tensor]:
        """Return what ``store`` has returned for an application in this pass."""


def _sum(bias: Tensor | None, allowed: Tensor, like: Tensor) -> Tensor:
    """Return ``bias`` with -inf where attention is not ``allowed``, too."""
    more = masks.additive(allowed, like)
    assert more is not None
    return more if bias is None else bias + more
