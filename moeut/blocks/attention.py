"""Multi-head attention: dense, dense with sigmoid gates, and SwitchHead.

Shapes: B rows, T queries, K keys, D model, H heads, d head size, E experts per head, k active
experts per head.

A layer gives attention two views of the same tokens: ``routed`` feeds what ends in a softmax or a
sigmoid (queries, keys, routers and gates), ``plain`` feeds the values. They are one tensor unless
the norm placement is ``peri``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut import config
from moeut.blocks import routing
from moeut.blocks.positions import Distances, RotaryTables, align_distances, rotate
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import Dispatch, expert_linear
from moeut.recurrence.cache import StackCache


@dataclass(frozen=True)
class AttentionContext:
    """What all applications of one forward pass share: masks, positions and routing."""

    bias: Tensor | None = None
    """(1 or B, 1, T or 1, K) added to the logits: 0, or -inf where attention is not allowed."""

    is_causal: bool = False
    """Causal with queries and keys in the same columns, so that no bias is needed."""

    scale: float | None = None
    """Factor on the logits; None: 1/sqrt(head size)."""

    rotary: RotaryTables | None = None
    distances: Distances | None = None
    routing: RoutingContext = field(default_factory=RoutingContext)
    """The routing context of the queries."""


class Source(NamedTuple):
    """Projected keys and values that queries from elsewhere attend to."""

    key: Tensor
    """(B, H, K, d)"""

    value: Tensor
    """(B, H, K, d)"""

    record: RouterRecord | None = None
    """What the value router decided."""

    def select(self, rows: Tensor) -> Source:
        """Keep the given rows of the batch."""
        return Source(self.key.index_select(0, rows), self.value.index_select(0, rows))


class AttentionOutput(NamedTuple):
    """The result (B, T, D), the records of ``value`` and ``output``, and traced weights."""

    output: Tensor
    routers: dict[str, RouterRecord]
    weights: Tensor | None


class RelativePosition(nn.Module):
    """The learned part of Transformer-XL's relative attention (arXiv 1901.02860)."""

    def __init__(self, position: config.Relative, heads: int, head_size: int, d_model: int) -> None:
        super().__init__()
        self.content_bias = nn.Parameter(torch.empty(heads, head_size))
        self.position_bias = nn.Parameter(torch.empty(heads, head_size))
        self.projection = nn.Linear(d_model, heads * head_size, bias=False)
        self.scale = nn.Parameter(torch.empty(())) if position.learned_scale else None

    def forward(self, query: Tensor, key: Tensor, distances: Distances) -> Tensor:
        """Return logits (B, H, T, K): [(q_i + u)·k_j + (q_i + w)·r_{j-i}] · scale.

        u and w are the content and position biases, r the projected sinusoid of a distance.
        """
        heads, head_size = self.content_bias.shape
        r = self.projection(distances.table).view(-1, heads, head_size)  # (W, H, d)
        content = (query + self.content_bias[:, None]) @ key.transpose(-1, -2)
        position = (query + self.position_bias[:, None]) @ r.permute(1, 2, 0)
        logits = content + align_distances(position, distances, key.shape[-2])
        return logits * (head_size**-0.5 if self.scale is None else self.scale)


class Attention(nn.Module):
    """What all kinds share: queries, keys, positions, softmax and cache.

    A kind adds ``value`` and ``output`` projections and the decisions that they need, which
    ``decide``, ``decide_values`` and ``decide_outputs`` take from the routed view.
    """

    def __init__(self, options: config.Attention, position: config.Position, d_model: int) -> None:
        super().__init__()
        self.num_heads = options.num_heads
        self.head_size = options.head_size
        self.dropout = options.dropout
        size = self.num_heads * self.head_size
        self.query = nn.Linear(d_model, size, bias=False)
        self.key = nn.Linear(d_model, size, bias=False)
        self.relative = None
        if isinstance(position, config.Relative):
            self.relative = RelativePosition(position, self.num_heads, self.head_size, d_model)

    def decide(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Any, RouterRecord | None, Any, RouterRecord | None]:
        """Return the value and the output decision, each with its record, for the same tokens."""
        return *self.decide_values(routed, context), *self.decide_outputs(routed, context)

    def decide_values(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Any, RouterRecord | None]:
        """Return what ``values`` needs to know of the source tokens, and its record."""
        raise NotImplementedError

    def decide_outputs(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Any, RouterRecord | None]:
        """Return what ``outputs`` needs to know of the query tokens, and its record."""
        raise NotImplementedError

    def values(
        self, plain: Tensor, decision: Any, context: RoutingContext
    ) -> Tensor:  # (B, H, K, d)
        """Project the plain view of the source tokens to values."""
        raise NotImplementedError

    def outputs(
        self, attended: Tensor, decision: Any, context: RoutingContext
    ) -> Tensor:  # (B, T, D)
        """Merge the heads' results (B, T, H, d)."""
        raise NotImplementedError

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the expert operations multiply by; none without experts."""
        return ()

    def project_source(self, routed: Tensor, plain: Tensor, context: RoutingContext) -> Source:
        """Project the tokens that queries from elsewhere will attend to; no positions applied."""
        decision, record = self.decide_values(routed, context)
        key = self._split_heads(self.key(routed), self.num_heads)
        return Source(key, self.values(plain, decision, context), record)

    def forward(
        self,
        routed: Tensor,
        plain: Tensor,
        context: AttentionContext,
        *,
        source: Source | None = None,
        cache: StackCache | None = None,
        application: int = 0,
    ) -> AttentionOutput:
        """Attend among the tokens themselves, or to ``source``.

        With ``cache``, new keys and values join those that application number ``application`` of
        the stack has stored, and all of them are attended to.
        """
        if source is None:
            weight = torch.cat((self.query.weight, self.key.weight))
            both = self._split_heads(F.linear(routed, weight), 2 * self.num_heads)
            if context.rotary is not None:
                both = rotate(both, context.rotary)
            query, key = both.chunk(2, dim=1)
            value_decision, value_record, output_decision, output_record = self.decide(
                routed, context.routing
            )
            value = self.values(plain, value_decision, context.routing)
        else:
            query = self._split_heads(self.query(routed), self.num_heads)
            key, value, value_record = source
            if context.rotary is not None:
                query, key = rotate(query, context.rotary), rotate(key, context.rotary)
            output_decision, output_record = self.decide_outputs(routed, context.routing)
        if cache is not None:
            key, value = cache.store(application, key, value)
        attended, weights = self._attend(query, key, value, context)
        output = self.outputs(attended.transpose(1, 2), output_decision, context.routing)
        records = {"value": value_record, "output": output_record}
        routers = {name: record for name, record in records.items() if record is not None}
        return AttentionOutput(output, routers, weights)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        explicit = context.distances is not None or context.routing.trace or _miscompiles(query)
        if not explicit:
            attended = F.scaled_dot_product_attention(
                query, key, value, context.bias, dropout, context.is_causal, scale=context.scale
            )
            return attended, None
        if context.distances is not None:
            assert self.relative is not None
            logits = self.relative(query, key, context.distances)
        else:
            scale = self.head_size**-0.5 if context.scale is None else context.scale
            logits = query @ key.transpose(-1, -2) * scale
        if context.bias is not None:
            logits = logits + context.bias
        elif context.is_causal:
            future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(future, float("-inf"))
        weights = logits.softmax(dim=-1)
        attended = F.dropout(weights, dropout, training=dropout > 0).to(value.dtype) @ value
        return attended, weights if context.routing.trace else None

    @staticmethod
    def _split_heads(x: Tensor, num_heads: int) -> Tensor:
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _miscompiles(query: Tensor) -> bool:
    """Return whether the fused attention would be compiled to code that fails in its backward pass.

    PyTorch 2.11's compiler takes the normaliser of float64 attention on a CPU to be float32
    ("expected scalar type Double but found Float"); 2.13's does not.
    """
    is_float64_on_cpu = query.dtype == torch.float64 and query.device.type == "cpu"
    return torch.compiler.is_compiling() and is_float64_on_cpu


class DenseMultiHeadAttention(Attention):
    """Dense value and output projections, optionally with a sigmoid gate per head on either.

    ``value_gate`` and ``output_gate`` are (H, D). They are SwitchHead's routers in the case of one
    expert per head: the MoEUT release keeps the one on the output, its training code both.
    """

    def __init__(
        self, options: config.DenseAttention, position: config.Position, d_model: int
    ) -> None:
        super().__init__(options, position, d_model)
        size = self.num_heads * self.head_size
        self.value = nn.Linear(d_model, size, bias=False)
        self.output = nn.Linear(size, d_model, bias=False)
        gates = options.attention_gates
        self.value_gate = self.output_gate = None
        if gates == "value_and_output":
            self.value_gate = nn.Parameter(torch.empty(self.num_heads, d_model))
        if gates != "none":
            self.output_gate = nn.Parameter(torch.empty(self.num_heads, d_model))

    def decide_values(self, routed: Tensor, context: RoutingContext) -> tuple[Tensor | None, None]:
        """Return the value gates (B, T, H)."""
        return self._gates(routed, self.value_gate), None

    def decide_outputs(self, routed: Tensor, context: RoutingContext) -> tuple[Tensor | None, None]:
        """Return the output gates (B, T, H)."""
        return self._gates(routed, self.output_gate), None

    def values(self, plain: Tensor, decision: Tensor | None, context: RoutingContext) -> Tensor:
        """Project, and gate each head."""
        value = self.value(plain).unflatten(-1, (self.num_heads, -1))
        return self._gated(value, decision).transpose(1, 2)

    def outputs(self, attended: Tensor, decision: Tensor | None, context: RoutingContext) -> Tensor:
        """Gate each head, and merge."""
        return self.output(self._gated(attended, decision).flatten(-2))

    @staticmethod
    def _gates(routed: Tensor, weight: Tensor | None) -> Tensor | None:
        return None if weight is None else routing.router_logits(routed, weight).sigmoid()

    @staticmethod
    def _gated(x: Tensor, gates: Tensor | None) -> Tensor:
        return x if gates is None else x * gates.unsqueeze(-1).to(x.dtype)


class SwitchHeadAttention(Attention):
    """Value and output projections are experts, chosen per head and token (arXiv 2312.07987).

    ``value`` (H·E, D, d), ``output`` (H·E, d, D) and their routers (H·E, D) are head-major. Values
    are routed by the tokens attended to, outputs by the querying token.
    """

    def __init__(self, options: config.SwitchHead, position: config.Position, d_model: int) -> None:
        super().__init__(options, position, d_model)
        self.num_experts = options.num_experts
        self.top_k = options.top_k
        self.expert_dropout = options.expert_dropout
        rows = self.num_heads * self.num_experts
        self.value = nn.Parameter(torch.empty(rows, d_model, self.head_size))
        self.output = nn.Parameter(torch.empty(rows, self.head_size, d_model))
        self.value_router = nn.Parameter(torch.empty(rows, d_model))
        self.output_router = nn.Parameter(torch.empty(rows, d_model))

    def decide(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Dispatched, RouterRecord | None, Dispatched, RouterRecord | None]:
        """Decide for values and outputs of the same tokens at once."""
        weight = torch.cat((self.value_router, self.output_router))
        value, output = self._decide(routed, weight, context)
        return *value, *output

    def decide_values(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Dispatched, RouterRecord | None]:
        """Choose value experts for the source tokens."""
        return self._decide(routed, self.value_router, context)[0]

    def decide_outputs(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Dispatched, RouterRecord | None]:
        """Choose output experts for the query tokens."""
        return self._decide(routed, self.output_router, context)[0]

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the value and the output experts."""
        return self.value, self.output

    def values(self, plain: Tensor, decision: Dispatched, context: RoutingContext) -> Tensor:
        """Mix each head's chosen value experts."""
        values = expert_linear(
            plain.flatten(0, 1),
            context.weights[self.value],
            decision.dispatch,
            slots_per_input=self.num_heads * self.top_k,
            slots_per_output=self.top_k,
            gate=decision.gates,
        )
        batch, length, _ = plain.shape
        return values.view(batch, length, self.num_heads, self.head_size).transpose(1, 2)

    def outputs(self, attended: Tensor, decision: Dispatched, context: RoutingContext) -> Tensor:
        """Mix each head's chosen output experts, and sum over heads."""
        outputs = expert_linear(
            attended.reshape(-1, self.head_size),
            context.weights[self.output],
            decision.dispatch,
            slots_per_input=self.top_k,
            slots_per_output=self.num_heads * self.top_k,
            gate=decision.gates,
        )
        return outputs.view(*attended.shape[:2], self.output.shape[-1])

    def _decide(
        self, routed: Tensor, weight: Tensor, context: RoutingContext
    ) -> list[tuple[Dispatched, RouterRecord | None]]:
        """Decide for each stretch of H·E rows of ``weight``: one or two routers."""
        heads, experts = self.num_heads, self.num_experts
        logits = routing.router_logits(routed, weight)
        if context.float32:
            logits = logits.float()
        logits = logits.unflatten(-1, (-1, experts))  # (B, T, R·H, E)
        drop = self.expert_dropout if self.training else 0.0
        chosen, record = routing.route(logits, self.top_k, context, drop=drop)
        if context.float32:
            # The release gates all experts of a router before it picks some, and float32 sigmoids
            # of a tensor of another size may differ in the last bit.
            gates = torch.cat([x.contiguous().sigmoid() for x in logits.split(heads, dim=2)], dim=2)
            picked = gates.gather(-1, chosen.selection.clamp_min(0))
            chosen = chosen._replace(gates=picked.masked_fill(chosen.selection < 0, 0.0))
            record = routing.record(logits, chosen, context)
        first = torch.arange(heads, device=routed.device).mul_(experts).unsqueeze(-1)
        decisions = []
        split = [kept.split(heads, dim=2) for kept in (chosen.selection, chosen.gates)]
        for part, (selection, gates) in enumerate(zip(*split, strict=True)):
            rows = torch.where(selection < 0, -1, selection + first)
            dispatch = Dispatch.from_indices(rows, heads * experts)
            heads_of_part = slice(part * heads, (part + 1) * heads)
            one = None if record is None else record.select_heads(heads_of_part)
            decisions.append((Dispatched(dispatch, gates), one))
        return decisions


class Dispatched(NamedTuple):
    """A routing decision ready for the expert matmuls."""

    dispatch: Dispatch
    gates: Tensor


ATTENTION = {
    config.DenseAttention: DenseMultiHeadAttention,
    config.SwitchHead: SwitchHeadAttention,
}


def build_attention(
    options: config.Attention, position: config.Position, d_model: int
) -> Attention:
    """Return the module of an attention's options; ``position`` decides on relative parameters."""
    return ATTENTION[type(options)](options, position, d_model)
