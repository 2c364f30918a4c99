"""One layer: attention, cross-attention if it has any, feed-forward, and where the norms are.

======  =======================================================================================
norm    a sublayer f with norm N
======  =======================================================================================
pre     x + f(N(x))
post    N(x + f(x))
peri    x + f(routed=N(x), plain=x): the norm feeds only what a softmax or a sigmoid follows,
        queries, keys and routers; values and expert weights see x itself (arXiv 2405.16039)
======  =======================================================================================

In cross-attention with ``peri``, the encoder's output is normed for keys and routers by the
sublayer's one norm, and feeds values as it is; with ``pre`` and ``post`` it is used as it is. A
dense feed-forward has no router, so with ``peri`` it has no norm either.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.attention import AttentionContext, AttentionOutput, Source, build_attention
from moeut.blocks.feed_forward import build_feed_forward
from moeut.blocks.routing import RouterRecord, RoutingContext, RoutingRecord
from moeut.config import DenseFeedForward, NoPosition, StackConfig
from moeut.recurrence.cache import StackCache


class Layer(nn.Module):
    """A layer of a stack, applied once or many times."""

    def __init__(self, config: StackConfig, d_model: int, *, cross_attention: bool = False) -> None:
        super().__init__()
        self.norm = config.norm
        self.dropout = config.dropout
        self.attention = build_attention(config.attention, config.position, d_model)
        self.attention_norm = nn.LayerNorm(d_model, config.norm_epsilon)
        self.cross_attention = self.cross_attention_norm = None
        if cross_attention:
            self.cross_attention = build_attention(config.attention, NoPosition(), d_model)
            self.cross_attention_norm = nn.LayerNorm(d_model, config.norm_epsilon)
        self.feed_forward = build_feed_forward(config.feed_forward, d_model)
        self.feed_forward_norm = None
        if not (config.norm == "peri" and isinstance(config.feed_forward, DenseFeedForward)):
            self.feed_forward_norm = nn.LayerNorm(d_model, config.norm_epsilon)

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        *,
        key_value_source: Tensor | None = None,
        cross_context: AttentionContext | None = None,
        memory: Source | None = None,
        cache: StackCache | None = None,
        application: int = 0,
    ) -> tuple[Tensor, RoutingRecord]:
        """Return the next state (B, T, D) and what was decided on the way.

        ``key_value_source`` (B, T, D), if given, is the state that self-attention reads keys and
        values from, in place of ``x``. ``memory`` is the result of ``project_memory``. ``cache``
        is updated in place, at ``application``.
        """
        routed, plain = self._views(x, self.attention_norm)
        source = None
        if key_value_source is not None:
            views = self._views(key_value_source, self.attention_norm)
            source = self.attention.project_source(*views, context.routing)
        attended = self.attention(
            routed, plain, context, source=source, cache=cache, application=application
        )
        x = self._update(x, attended.output, self.attention_norm)
        routers: dict[str, RouterRecord] = {}
        weights: dict[str, Tensor] = {}
        _note(attended, "attention", routers, weights)

        if memory is not None:
            assert self.cross_attention is not None
            assert self.cross_attention_norm is not None
            assert cross_context is not None
            routed, plain = self._views(x, self.cross_attention_norm)
            attended = self.cross_attention(routed, plain, cross_context, source=memory)
            x = self._update(x, attended.output, self.cross_attention_norm)
            _note(attended, "cross_attention", routers, weights)

        routed, plain = self._views(x, self.feed_forward_norm)
        mapped, record = self.feed_forward(routed, plain, context.routing)
        x = self._update(x, mapped, self.feed_forward_norm)
        if record is not None:
            routers["feed_forward"] = record
        return x, RoutingRecord(routers, weights)

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the layer's expert operations multiply by, but those of memory.

        An encoder's output is projected once, however often the layer is applied.
        """
        of_memory = (
            self.cross_attention.expert_weights()[1:] if self.cross_attention is not None else ()
        )
        return (
            *self.attention.expert_weights(),
            *of_memory,
            *self.feed_forward.expert_weights(),
        )

    def project_memory(self, states: Tensor, routing: RoutingContext) -> Source:
        """Return keys and values of an encoder's output, which no repeat of this layer changes."""
        assert self.cross_attention is not None
        assert self.cross_attention_norm is not None
        routed = self.cross_attention_norm(states) if self.norm == "peri" else states
        return self.cross_attention.project_source(routed, states, routing)

    def _views(self, x: Tensor, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
        """Return the routed and the plain view of a sublayer's input."""
        if norm is None or self.norm == "post":
            return x, x
        normed = norm(x)
        return normed, x if self.norm == "peri" else normed

    def _update(self, x: Tensor, change: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        if self.dropout and self.training:
            change = F.dropout(change, self.dropout)
        x = x + change
        return norm(x) if norm is not None and self.norm == "post" else x


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
