"""Multi-head attention: what all kinds share.

Shapes: B rows, T queries, K keys, D model, H heads, G key heads, d head size, E experts per head,
k active experts per head. G is H unless keys are grouped; query head h then reads key head
h // (H / G).

A layer gives attention two views of the same tokens: ``routed`` feeds what ends in a softmax or a
sigmoid (queries, keys, routers and gates), ``plain`` feeds the values. They are one tensor unless
the norm placement is ``peri``.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut import ops
from moeut.blocks.attention import fused
from moeut.blocks.attention.context import (
    AttentionContext,
    AttentionOutput,
    KeyValueStore,
    Participation,
    Source,
)
from moeut.blocks.attention.options import AttentionOptions
from moeut.blocks.own import Relaxable
from moeut.blocks.positions import (
    NoPosition,
    PositionOptions,
    rotate,
)
from moeut.blocks.roles import Roles, constant, linear
from moeut.blocks.routing import RouterRecord, RoutingContext

MANY_TOKENS = 64
"""Tokens whose queries and keys are projected in one product."""

Decision = TypeVar("Decision")
"""What a kind decides of a token before it projects: gates, or experts and gates."""


class Attention(Relaxable, Generic[Decision]):
    """What all kinds share: queries, keys, positions, softmax and cache.

    A kind adds ``value`` and ``output`` projections and the decisions that they need, which
    ``decide``, ``decide_values`` and ``decide_outputs`` take from the routed view.
    """

    has_dense_query: bool = True
    """Whether ``query`` is one dense layer."""

    def __init__(
        self, options: AttentionOptions, d_model: int, position: PositionOptions | None = None
    ) -> None:
        super().__init__()
        self.num_heads, self.num_key_heads = options.num_heads, options.num_key_heads
        self.head_size = options.head_size
        self.dropout = options.dropout
        self.d_model, self.width, self.key_width = d_model, options.width, options.key_width
        self.qk_norm = options.qk_norm
        self.query = ops.Linear(d_model, options.width, bias="query" in options.biased)
        self.key = ops.Linear(d_model, options.key_width, bias="key" in options.biased)
        position = position or NoPosition()
        self.relative = position.build_relative(self.num_heads, self.head_size, d_model)

    def roles(self) -> Roles:
        """Return the roles of queries and keys; a kind adds its own."""
        roles = {
            "query.weight": linear(self.d_model, self.width),
            "key.weight": linear(self.d_model, self.key_width),
        }
        if self.query.bias is not None:
            roles |= dict.fromkeys(("query.bias", "key.bias"), constant(0.0))
        return roles

    def decide(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Decision, RouterRecord | None, Decision, RouterRecord | None]:
        """Return the value and the output decision for ``routed`` (B, T, D), each with its record.

        Values and outputs are those of the same tokens; a kind may decide on both in one go.
        """
        return *self.decide_values(routed, context), *self.decide_outputs(routed, context)

    def decide_values(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Decision, RouterRecord | None]:
        """Return what ``values`` needs to know of the source tokens (B, K, D), and its record."""
        raise NotImplementedError

    def decide_outputs(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Decision, RouterRecord | None]:
        """Return what ``outputs`` needs to know of the query tokens (B, T, D), and its record."""
        raise NotImplementedError

    def values(
        self, plain: Tensor, decision: Decision, context: RoutingContext
    ) -> Tensor:  # (B, G, K, d)
        """Project the plain view (B, K, D) of the source tokens to values."""
        raise NotImplementedError

    def outputs(
        self, attended: Tensor, decision: Decision, context: RoutingContext
    ) -> Tensor:  # (B, T, D)
        """Merge the heads' results (B, T, H, d)."""
        raise NotImplementedError

    def expert_weights(self, *, source: bool = True) -> tuple[nn.Parameter, ...]:
        """Return the weights that the expert operations multiply by; none without experts.

        ``source=False``: only those of the query side, without those that ``project_source`` uses.
        """
        return ()

    def borrow_experts(self, owner: Attention[Any]) -> None:
        """Use the experts of another attention of the same kind, where the kind has any."""

    def source_parts(self) -> list[nn.Module | nn.Parameter | None]:
        """Return what repeats may have their own of among what makes keys and values."""
        adapters = dict(self.adapters.items()) if self.adapters is not None else {}
        of_source = [adapters[name].down for name in ("key", "value") if name in adapters]
        routers = [name for name in self.routers if name.startswith("value")]
        return [*of_source, *(getattr(self, name) for name in routers)]

    def project_source(self, routed: Tensor, plain: Tensor, context: RoutingContext) -> Source:
        """Project tokens (B, K, D), both views, that queries from elsewhere will attend to.

        Positions are not applied yet: the pass that attends knows them.
        """
        decision, record = self.decide_values(routed, context)
        key = self.project("key", routed, context.repeat)
        key = self._split_heads(key, self.num_key_heads)
        value = self.values(plain, decision, context)
        if context.added_values is not None:
            value = value + context.added_values(routed).to(value.dtype)
        return Source(key, value, record)

    def forward(
        self,
        routed: Tensor,
        plain: Tensor,
        context: AttentionContext,
        *,
        source: Source | None = None,
        cache: KeyValueStore | None = None,
        application: int = 0,
        participation: Participation | None = None,
    ) -> AttentionOutput:
        """Attend among the tokens themselves, both views (B, T, D), or to ``source``.

        With ``cache``, new keys and values join those that application number ``application`` of
        the stack has stored, and all of them are attended to. With ``participation``, tokens that
        take no part keep the keys and values that they held, and the output has them all in
        ``kept``. Packed tokens are (1, M, D), see ``AttentionContext.packing``.
        """
        is_held = participation is not None and participation.stored is not None
        if source is None and not is_held:
            if context.routing_of_source is None:
                value_decision, value_record, output_decision, output_record = self.decide(
                    routed, context.routing
                )
            else:
                value_decision, value_record = self.decide_values(routed, context.routing_of_source)
                output_decision, output_record = self.decide_outputs(routed, context.routing)
            # One product for queries and keys: (B, T, (H+G)·d) -> (B, H+G, T, d), queries first.
            heads = [self.num_heads, self.num_key_heads]
            both = self._query_and_key(
                routed, output_decision, context.routing, is_decoding=cache is not None
            )
            query, key = self._place(self._split_heads(both, sum(heads)), context).split(heads, 1)
            value = self.values(plain, value_decision, context.routing)
            if context.routing.added_values is not None:
                value = value + context.routing.added_values(routed).to(value.dtype)
            kept = Source(key, value, value_record)
        else:
            output_decision, output_record = self.decide_outputs(routed, context.routing)
            query = self.queries(routed, output_decision, context.routing)
            query = self._place(self._split_heads(query, self.num_heads), context)
            if source is not None:
                # Only self-attention with keys from elsewhere has positions here, and its source
                # has the same columns as its queries. An encoder's output has none.
                kept = source._replace(key=self._place(source.key, context.of_source or context))
            else:
                assert participation is not None
                assert participation.held is not None
                kept = participation.held._replace(record=None)
        value_record = kept.record
        if participation is not None and not is_held:
            packing = (context.of_source or context).packing
            # Who else reads what is held: a cache, the backward pass, later repeats that share it.
            is_read = cache is not None or torch.is_grad_enabled() or participation.is_shared
            kept = participation.merge(kept.key, kept.value, packing, in_place=not is_read)
        key, value = kept.key, kept.value
        if cache is not None:  # keys are stored rotated: their positions never change
            if participation is not None and participation.stored is not None:
                key, value = cache.load(participation.stored)
            else:
                key, value = cache.store(application, key, value)  # (B, G, T, d) -> (B, G, K, d)
        attended, weights = self._attend_rows(query, key, value, context, routed)
        output = self.outputs(attended.transpose(1, 2), output_decision, context.routing)
        records = {"value": value_record, "output": output_record}
        routers = {name: record for name, record in records.items() if record is not None}
        return AttentionOutput(output, routers, weights, None if participation is None else kept)

    def _attend_rows(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, routed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``attend`` does, with key heads that are shared and queries that are packed."""
        packing = context.packing
        if packing is not None and packing.is_empty:
            return value.new_empty(*query.shape[:-1], value.shape[-1]), None
        if self.num_key_heads < self.num_heads:
            group = self.num_heads // self.num_key_heads
            key, value = (heads.repeat_interleave(group, dim=1) for heads in (key, value))
        if packing is None:
            return self.attend(query, key, value, context, routed)
        if not packing.is_alone or context.columns is None:
            key, value = packing.of_rows(key), packing.of_rows(value)
        # A kind that weighs in its own way may read it, and logits of positions.
        if context.distances is not None or type(self).attend is not Attention.attend:
            routed = packing.spread(routed.unsqueeze(1)).squeeze(1)
        attended, _ = self.attend(packing.spread(query), key, value, context, routed)
        return packing.pack(attended), None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, routed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Weigh values by softmax(query · key / sqrt(d)): (B, H, T, d), and traced weights.

        ``query`` is (B, H, T, d), ``key`` and ``value`` (B, H, K, d), ``routed`` (B, T, D) what the
        queries were projected from. A kind that weighs otherwise overrides this.
        """
        dropout = self.dropout if self.training else 0.0
        if not context.routing.trace:
            about = (context.bias, context.is_causal, context.distances)
            attended = fused.attend(query, key, value, *about, self.relative, dropout)
            if attended is not None:
                return attended, None
        explicit = context.distances is not None or context.routing.trace or _miscompiles(query)
        if not explicit:
            attended = F.scaled_dot_product_attention(
                query, key, value, context.bias, dropout, context.is_causal
            )
            return attended, None
        if context.distances is not None:
            assert self.relative is not None
            logits = self.relative(query, key, context.distances, routed)
        else:
            logits = query @ key.transpose(-1, -2) * self.head_size**-0.5  # (B, H, T, K)
        if context.bias is not None:
            logits = logits + context.bias
        elif context.is_causal:
            future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(future, float("-inf"))
        weights = logits.softmax(dim=-1)
        # Under autocast the softmax is float32 and the values are not.
        attended = ops.dropout(weights, dropout).to(value.dtype) @ value
        return attended, weights if context.routing.trace else None

    def _place(self, heads: Tensor, context: AttentionContext) -> Tensor:
        """Norm and rotate queries or keys (B, H, T, d), as far as the options say."""
        if self.qk_norm == "before":
            heads = F.rms_norm(heads, (self.head_size,))
        if context.rotary is not None:
            heads = rotate(heads, context.rotary)
        return F.rms_norm(heads, (self.head_size,)) if self.qk_norm == "after" else heads

    def queries(
        self, routed: Tensor, decision: Decision, context: RoutingContext
    ) -> Tensor:  # (B, T, H·d)
        """Project the routed view (B, T, D) of the query tokens to queries."""
        return self.project("query", routed, context.repeat)

    def _query_and_key(
        self, routed: Tensor, decision: Decision, context: RoutingContext, *, is_decoding: bool
    ) -> Tensor:  # (B, T, (H+G)·d)
        """Project to queries and keys, side by side, in one product where both are dense."""
        # Of a few tokens, putting the weights side by side costs more than it saves. Not so outside
        # decoding: repeats without gradient compute the same bits as those with it.
        is_few = routed.shape[0] * routed.shape[1] < MANY_TOKENS
        if self.adapters is not None or not self.has_dense_query or (is_few and is_decoding):
            key = self.project("key", routed, context.repeat)
            return torch.cat((self.queries(routed, decision, context), key), dim=-1)
        weight, bias = context.weights.stacked(self.query.weight, self.key.weight), None
        if self.query.bias is not None:
            bias = context.weights.stacked(self.query.bias, self.key.bias)
        return ops.linear(routed, weight, bias)

    @staticmethod
    def _split_heads(x: Tensor, num_heads: int) -> Tensor:  # (B, T, H·d) -> (B, H, T, d)
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _miscompiles(query: Tensor) -> bool:
    """Return whether the fused attention would be compiled to code that fails in its backward pass.

    PyTorch 2.11's compiler takes the normaliser of float64 attention on a CPU to be float32
    ("expected scalar type Double but found Float"); 2.13's does not.
    """
    is_float64_on_cpu = query.dtype == torch.float64 and query.device.type == "cpu"
    return torch.compiler.is_compiling() and is_float64_on_cpu
