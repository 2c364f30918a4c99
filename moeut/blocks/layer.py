"""One layer: attention, cross-attention if it has any, feed-forward, and the norms around them.

In cross-attention with ``norm: peri``, the encoder's output is normed for keys and routers by the
sublayer's one norm, and feeds values as it is; with ``pre`` and ``post`` it is used as it is. A
feed-forward without a router has no norm with ``peri``, unless the layer's update has a gate.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from torch import Tensor, nn

from moeut.blocks.attention import (
    Attention,
    AttentionContext,
    AttentionOutput,
    KeyValueStore,
    Participation,
    Source,
)
from moeut.blocks.neighbours import TokenRow
from moeut.blocks.norms import Norm, PositionNorm, modulated, views
from moeut.blocks.own import Encoding, PerRepeat, copies, index_of, of_repeat, per_repeat
from moeut.blocks.routing import RouterRecord, RoutingContext, RoutingRecord
from moeut.blocks.updates import Update
from moeut.ops import dropout
from moeut.recurrence.stack_config import StackConfig


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

    def __init__(
        self,
        config: StackConfig,
        d_model: int,
        *,
        cross_attention: bool = False,
        repeats: int = 0,
        ends_recursion: bool = False,
    ) -> None:
        """Build a layer of a stack; one that is repeated has, for ``repeats``, parts of its own.

        ``ends_recursion``: whether a recursion ends with it, which may have a factor.
        """
        super().__init__()
        own = config.own
        self.norm = config.norm
        self.dropout = config.dropout

        def norm(is_there: bool = True, build: Any = config.norms.build) -> Any:
            return per_repeat(lambda: build(d_model), repeats * own.norms) if is_there else None

        has_second = config.norm in ("sandwich", "branch")
        self.attention = self._attention(config, d_model, repeats)
        around = functools.partial(config.attention.build_norm, config.norms)
        self.attention_norm = norm(build=around)
        self.attention_second_norm = norm(has_second)
        self.cross_attention = self.cross_attention_norm = self.cross_attention_second_norm = None
        if cross_attention:
            self.cross_attention = self._attention(config, d_model, repeats, across=True)
            self.cross_attention_norm = norm()
            self.cross_attention_second_norm = norm(has_second)
        self.feed_forward = config.feed_forward.build(d_model)
        if repeats and own.routers:
            self.feed_forward.separate_routers(repeats)
        adapted = own.adapters.of_feed_forward(self.feed_forward.projections)
        if repeats and own.adapters.rank and adapted:
            self.feed_forward.adapt(own.adapters, adapted, repeats)
        has_router = config.feed_forward.has_router()
        self.feed_forward_norm = norm(config.update.needs_norm(config.norm, has_router=has_router))
        self.feed_forward_second_norm = norm(config.update.needs_second_norm(config.norm))
        count = repeats * own.update
        self.update = per_repeat(lambda: config.update.build(d_model, config.norms), count)
        self.encoding = Encoding(d_model, repeats) if own.encoding and ends_recursion else None

    @staticmethod
    def _attention(config: StackConfig, d_model: int, repeats: int, *, across: bool = False) -> Any:
        """Return an attention, or one for each repeat, whose experts are those of the first."""
        options, own = config.attention, config.own

        def build() -> Attention[Any]:
            if across:
                return options.across().build(d_model)
            return options.build(d_model, config.position)

        attention = per_repeat(build, repeats * own.attention)
        first = next(copies(attention))
        for one in copies(attention):
            if one is not first:
                one.borrow_experts(first)
        if not repeats or own.attention:
            return attention
        if own.routers:
            attention.separate_routers(repeats)
        if own.adapters.rank and own.adapters.of_attention():
            attention.adapt(own.adapters, own.adapters.of_attention(), repeats)
        return attention

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
        start, repeat = x, context.routing.repeat
        attention, update = of_repeat(self.attention, repeat), of_repeat(self.update, repeat)
        norms = self._norms("attention", repeat, context.routing.row)
        modulation = context.routing.modulation
        routed, plain = modulated(views(x, norms[0], self.norm), modulation)
        source = None
        if key_value_source is not None:
            both = modulated(views(key_value_source, norms[0], self.norm), modulation)
            routing = context.routing_of_source or context.routing
            source = attention.project_source(*both, routing)
        attended = attention(
            routed,
            plain,
            context,
            source=source,
            cache=cache,
            application=application,
            participation=participation,
        )
        kept = attended.kept
        x = self._between(update, x, attended.output, *norms)
        routers: dict[str, RouterRecord] = {}
        weights: dict[str, Tensor] = {}
        _note(attended, "attention", routers, weights)

        if memory is not None:
            assert cross_context is not None
            cross_attention = of_repeat(self.cross_attention, repeat)
            assert cross_attention is not None
            norms = self._norms("cross_attention", repeat)
            routed, plain = modulated(views(x, norms[0], self.norm), modulation)
            attended = cross_attention(routed, plain, cross_context, source=memory)
            x = self._between(update, x, attended.output, *norms)
            _note(attended, "cross_attention", routers, weights)

        norm, second = self._norms("feed_forward", repeat)
        routed, plain = modulated(views(x, norm, self.norm), modulation)
        mapped, record = self.feed_forward(routed, plain, context.routing)
        change = self._of_branch(mapped, second)
        if update.drops_last:
            change = self._drop(change)
        x = update.last(start, x, change, self._behind(norm, second), routed)
        if self.encoding is not None:
            x = self.encoding(x, repeat)
        if record is not None:
            routers["feed_forward"] = record
        return LayerOutput(x, RoutingRecord(routers, weights), kept)

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the layer's expert operations multiply by, but those of memory.

        An encoder's output is projected once, however often the layer is applied.
        """
        of_queries: tuple[nn.Parameter, ...] = ()
        if self.cross_attention is not None:
            of_queries = next(copies(self.cross_attention)).expert_weights(source=False)
        own = next(copies(self.attention)).expert_weights()
        return (*own, *of_queries, *self.feed_forward.expert_weights())

    def project_memory(self, states: Tensor, routing: RoutingContext) -> Source:
        """Return keys and values of an encoder's output ``states`` (B, S, D).

        All repeats of this layer that have one ``memory_index`` read the same.
        """
        attention = of_repeat(self.cross_attention, routing.repeat)
        norm, _ = self._norms("cross_attention", routing.repeat)
        assert attention is not None
        assert norm is not None
        routed = norm(states) if self.norm == "peri" else states
        return attention.project_source(routed, states, routing)

    def memory_index(self, repeat: int | None) -> int:
        """Return which projection of an encoder's output a repeat reads; 0 where all read one."""
        parts = [self.cross_attention]
        if self.norm == "peri":
            parts.append(self.cross_attention_norm)
        if isinstance(self.cross_attention, Attention):
            parts += self.cross_attention.source_parts()
        return max(index_of(part, repeat) for part in parts)

    def router_index(self, router: str, repeat: int | None) -> int:
        """Return which of its copies the router of that name is in a repeat; 0 if it is shared."""
        block = getattr(self, router.partition(".")[0])
        if isinstance(block, PerRepeat):
            return index_of(block, repeat)
        return block.router_index(repeat)

    def _norms(
        self, block: str, repeat: int | None, row: TokenRow | None = None
    ) -> tuple[Norm | None, Norm | None]:
        """Return the norm before a sublayer and the second one, where it has them.

        One over positions is told which tokens of the ``row`` are real.
        """
        first, second = getattr(self, f"{block}_norm"), getattr(self, f"{block}_second_norm")
        first = of_repeat(first, repeat)
        if isinstance(first, PositionNorm):
            first = functools.partial(first, row=row)
        return first, of_repeat(second, repeat)

    def _between(
        self,
        update: Update,
        x: Tensor,
        change: Tensor,
        norm: nn.Module | None,
        second: nn.Module | None,
    ) -> Tensor:
        change = self._drop(self._of_branch(change, second))
        return update.between(x, change, self._behind(norm, second))

    def _of_branch(self, change: Tensor, second: nn.Module | None) -> Tensor:
        """Return the output of a sublayer, normed where a norm acts on it alone."""
        return second(change) if second is not None and self.norm == "branch" else change

    def _behind(self, norm: nn.Module | None, second: nn.Module | None) -> nn.Module | None:
        """Return the norm that acts on the sum of a sublayer and its input."""
        if self.norm == "sandwich":
            return second
        return norm if self.norm == "post" else None

    def _drop(self, change: Tensor) -> Tensor:
        return dropout(change, self.dropout) if self.dropout and self.training else change


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
