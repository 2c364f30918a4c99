"""One layer: attention, cross-attention if it has any, feed-forward, and the norms around them.

In cross-attention with ``norm: peri``, the encoder's output is normed for keys and routers by the
sublayer's one norm, and feeds values as it is; with ``pre`` and ``post`` it is used as it is. A
feed-forward without a router has no norm with ``peri``, unless the layer's update has a gate.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.attention import (
    AttentionContext,
    AttentionOutput,
    KeyValueStore,
    Participation,
    Source,
)
from moeut.blocks.norms import views
from moeut.blocks.routing import RouterRecord, RoutingContext, RoutingRecord
from moeut.config import StackConfig


class LayerOutput(NamedTuple):
    """What one application of a layer returns."""

    x: Tensor
    """(B, T, D) the next state."""

    record: RoutingRecord
    """What was decided on the way."""

    kept: Source | None = None
    """Keys and values of self-attention, for tokens that sit out the next application."""


class Layer(nn.Module):
    """A layer of a stack, applied once or many times."""

    def __init__(self, config: StackConfig, d_model: int, *, cross_attention: bool = False) -> None:
        super().__init__()
        self.norm = config.norm
        self.dropout = config.dropout
        self.attention = config.attention.build(d_model, config.position)
        norms = config.norms
        has_second = config.norm in ("sandwich", "branch")
        self.attention_norm = norms.build(d_model)
        self.attention_second_norm = norms.build(d_model) if has_second else None
        self.cross_attention = self.cross_attention_norm = self.cross_attention_second_norm = None
        if cross_attention:
            self.cross_attention = config.attention.across().build(d_model)
            self.cross_attention_norm = norms.build(d_model)
            self.cross_attention_second_norm = norms.build(d_model) if has_second else None
        self.feed_forward = config.feed_forward.build(d_model)
        self.feed_forward_norm = self.feed_forward_second_norm = None
        has_router = config.feed_forward.has_router()
        if config.update.needs_norm(config.norm, has_router=has_router):
            self.feed_forward_norm = norms.build(d_model)
        if config.update.needs_second_norm(config.norm):
            self.feed_forward_second_norm = norms.build(d_model)
        self.update = config.update.build(d_model, norms)

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        *,
        key_value_source: Tensor | None = None,
        cross_context: AttentionContext | None = None,
        memory: Source | None = None,
        cache: KeyValueStore | None = None,
        application: int = 0,
        participation: Participation | None = None,
    ) -> LayerOutput:
        """Return the next state (B, T, D) and what was decided on the way.

        ``key_value_source`` (B, T, D), if given, is the state that self-attention reads keys and
        values from, in place of ``x``. ``memory`` is the result of ``project_memory``. ``cache``
        is updated in place, at ``application``. ``participation`` says which tokens take part;
        what becomes of the state of the others is the stack's to decide.
        """
        start = x
        routed, plain = views(x, self.attention_norm, self.norm)
        source = None
        if key_value_source is not None:
            both = views(key_value_source, self.attention_norm, self.norm)
            routing = context.routing_of_source or context.routing
            source = self.attention.project_source(*both, routing)
        attended = self.attention(
            routed,
            plain,
            context,
            source=source,
            cache=cache,
            application=application,
            participation=participation,
        )
        kept = attended.kept
        norms = self.attention_norm, self.attention_second_norm
        x = self._between(x, attended.output, *norms)
        routers: dict[str, RouterRecord] = {}
        weights: dict[str, Tensor] = {}
        _note(attended, "attention", routers, weights)

        if memory is not None:
            assert self.cross_attention is not None
            assert self.cross_attention_norm is not None
            assert cross_context is not None
            routed, plain = views(x, self.cross_attention_norm, self.norm)
            attended = self.cross_attention(routed, plain, cross_context, source=memory)
            norms = self.cross_attention_norm, self.cross_attention_second_norm
            x = self._between(x, attended.output, *norms)
            _note(attended, "cross_attention", routers, weights)

        routed, plain = views(x, self.feed_forward_norm, self.norm)
        mapped, record = self.feed_forward(routed, plain, context.routing)
        second = self.feed_forward_second_norm
        change = self._of_branch(mapped, second)
        if self.update.drops_last:
            change = self._drop(change)
        behind = self._behind(self.feed_forward_norm, second)
        x = self.update.last(start, x, change, behind, routed)
        if record is not None:
            routers["feed_forward"] = record
        return LayerOutput(x, RoutingRecord(routers, weights), kept)

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the layer's expert operations multiply by, but those of memory.

        An encoder's output is projected once, however often the layer is applied.
        """
        of_queries: tuple[nn.Parameter, ...] = ()
        if self.cross_attention is not None:
            of_queries = self.cross_attention.expert_weights(source=False)
        own = self.attention.expert_weights()
        return (*own, *of_queries, *self.feed_forward.expert_weights())

    def project_memory(self, states: Tensor, routing: RoutingContext) -> Source:
        """Return keys and values of an encoder's output ``states`` (B, S, D).

        No repeat of this layer changes them.
        """
        assert self.cross_attention is not None
        assert self.cross_attention_norm is not None
        routed = self.cross_attention_norm(states) if self.norm == "peri" else states
        return self.cross_attention.project_source(routed, states, routing)

    def _between(
        self, x: Tensor, change: Tensor, norm: nn.Module, second: nn.Module | None
    ) -> Tensor:
        change = self._drop(self._of_branch(change, second))
        return self.update.between(x, change, self._behind(norm, second))

    def _of_branch(self, change: Tensor, second: nn.Module | None) -> Tensor:
        """Return the output of a sublayer, normed where a norm acts on it alone."""
        return second(change) if second is not None and self.norm == "branch" else change

    def _behind(self, norm: nn.Module | None, second: nn.Module | None) -> nn.Module | None:
        """Return the norm that acts on the sum of a sublayer and its input."""
        if self.norm == "sandwich":
            return second
        return norm if self.norm == "post" else None

    def _drop(self, change: Tensor) -> Tensor:
        return F.dropout(change, self.dropout) if self.dropout and self.training else change


def _note(
    attended: AttentionOutput,
    name: str,
    routers: dict[str, RouterRecord],
    weights: dict[str, Tensor],
) -> None:
    for router, record in attended.routers.items():
        routers[f"{name}.{router}"] = record
    if attended.weights is not None:
        weights[name] = attended.weights
