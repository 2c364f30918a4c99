"""What one stack of a model is made of, and what it cannot do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from moeut.blocks.attention import AttentionOptions
from moeut.blocks.feed_forward import FeedForwardOptions
from moeut.blocks.norms import NormKind, NormOptions, NormPlacement
from moeut.blocks.own import Own
from moeut.blocks.positions import PositionOptions
from moeut.blocks.updates import UpdateOptions
from moeut.blocks.value_embeddings import ValueEmbedding, ValueEmbeddings
from moeut.recurrence.conditioning import Conditioning
from moeut.recurrence.controller import ControllerOptions, NoHalting
from moeut.recurrence.injection import NoInjection
from moeut.recurrence.schedule import Depth, NoRecursion, Place, RecursionOptions
from moeut.recurrence.state import State

EmbeddingScale = Literal["none", "sqrt_d_model"]
SharedKeys = Literal["none", "first", "update"]


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """What one stack of a model is made of: a view of the model's options, nothing left out."""

    d_model: int
    depth: Depth
    recursion: RecursionOptions
    state: State
    halting: ControllerOptions
    conditioning: Conditioning
    attention: AttentionOptions
    feed_forward: FeedForwardOptions
    position: PositionOptions
    input_position: PositionOptions
    norm: NormPlacement
    norm_kind: NormKind
    norm_weights: bool
    norm_input: bool
    norm_input_weights: bool
    final_norm: bool
    repeat_norm: bool
    norm_epsilon: float
    embedding_scale: EmbeddingScale
    embedding_size: int
    update: UpdateOptions
    own: Own
    shared_keys: SharedKeys
    dropout: float
    outer_width: int | None
    core_width: int
    value_embeddings: ValueEmbeddings
    vocabulary_size: int
    causal: bool
    """Whether tokens look at earlier tokens only."""
    cross_attention: bool
    """Whether each layer reads an encoder's output too."""

    @property
    def position_limit(self) -> tuple[str, int] | None:
        """The option that bounds the length of a row, and the most tokens; None: nothing does."""
        names = ("position", "input_position", "attention")
        bounds = [(f"{n}.max_length", getattr(self, n).max_tokens) for n in names]
        bounded = [(name, most) for name, most in bounds if most is not None]
        return min(bounded, key=lambda bound: bound[1], default=None)

    @property
    def tells_order(self) -> bool:
        """Whether anything tells the order of tokens; a row is a bag of them otherwise."""
        placed = any(each.kind != "none" for each in (self.position, self.input_position))
        parts = (self.attention.tells_order, self.conditioning.tells_order)
        return self.causal or placed or any(parts) or self.feed_forward.reads_neighbours

    def of_layer(self, layer: int) -> StackConfig:
        """Return what a layer, numbered from 0, is made of."""
        changes: dict[str, Any] = {}
        if (position := self.position.of_layer(layer)) is not self.position:
            changes["position"] = position
        if self.depth.is_in_group(layer):
            if self.core_width != self.d_model:
                changes["d_model"] = self.core_width
                changes["attention"] = self.attention.with_width(self.core_width)
        elif self.outer_width is not None:
            changes["feed_forward"] = self.feed_forward.with_width(self.outer_width)
        return dataclasses.replace(self, **changes) if changes else self

    def build_value_embeddings(self) -> nn.ModuleDict:
        """Return the value embeddings by the number of their layer."""
        channels = min(self.value_embeddings.channels, self.d_model, self.core_width)
        built = {}
        for layer in self.value_embeddings.of(self.num_layers):
            heads, size = self.of_layer(layer).attention.value_heads
            built[str(layer)] = ValueEmbedding(self.vocabulary_size, heads * size, heads, channels)
        return nn.ModuleDict(built)

    @property
    def norms(self) -> NormOptions:
        """What all norms of the stack are."""
        return NormOptions(self.norm_kind, self.norm_epsilon, self.norm_weights)

    @property
    def embedding_factor(self) -> float:
        """What token embeddings are multiplied by."""
        return math.sqrt(self.d_model) if self.embedding_scale == "sqrt_d_model" else 1.0

    def refuses_reading(self) -> str | None:
        """Return why a cache serves the result alone, and no other state; None: it serves all."""
        if self.depth.coda:
            return (
                f"a cache has keys of the result alone in the coda (depth.coda={self.depth.coda})"
            )
        if self.state.output == "feed_forward" and self.feed_forward.reads_neighbours:
            return "a cache has neighbours of the result alone in state.output=feed_forward"
        return None

    def refuses_exits(self) -> str | None:
        """Return why tokens cannot leave by a rule in evaluation; None: they can."""
        if self.is_recursive:
            return "a recursion updates whole states"
        if not self.depth.is_shared:
            return "no layer is repeated (depth.repeats=1)"
        if not self.depth.has_whole_repeats:
            return "depth.order=sequence has no whole repeats to leave after"
        if not self.halting.gives_way():
            return f"halting.kind={self.halting.kind!r} says itself who leaves"
        return None

    def places(self, num_repeats: int | None = None) -> list[Place]:
        """Return each application of a pass, for the configured repeats or others, in order."""
        return self.recursion.places(self.depth, num_repeats)

    @property
    def num_layers(self) -> int:
        """Layers that have parameters of their own."""
        return self.recursion.num_layers(self.depth)

    @property
    def num_applications(self) -> int:
        """Layers applied in a pass of the configured depth (L)."""
        return len(self.places())

    @property
    def is_recursive(self) -> bool:
        """Whether repeats pass states back and forth."""
        return not isinstance(self.recursion, NoRecursion)

    def refuses_truncation(self, prefix: str = "") -> str | None:
        """Return why gradients cannot flow through the last repeats alone; None: they can.

        ``prefix`` stands before the options that are named, such as ``model.``.
        """
        if self.is_recursive:
            return f"{prefix}recursion decides through which updates gradients flow"
        if not self.depth.is_shared:
            return f"no layer is repeated ({prefix}depth.repeats=1)"
        if not self.depth.has_whole_repeats:
            return f"{prefix}depth.order=sequence has no last repeat of the whole group"
        if isinstance(self.state.injection, NoInjection):
            return f"needs {prefix}state.injection, by which gradients still reach the embedding"
        return None

    def refuses_row_depth(self, prefix: str = "", *, is_truncated: bool = False) -> str | None:
        """Return why rows cannot have depths of their own; None: they can.

        ``prefix`` is as in ``refuses_truncation``; ``is_truncated``: some repeats have no gradient.
        """
        if self.is_recursive:
            return "a recursion updates whole states"
        if not self.depth.is_shared:
            return f"no layer is repeated ({prefix}depth.repeats=1)"
        if not self.depth.has_whole_repeats:
            return f"{prefix}depth.order=sequence has no repeat of the whole group"
        if not isinstance(self.halting, NoHalting):
            return f"{prefix}halting.kind={self.halting.kind} decides how deep a token goes"
        if is_truncated and not self.own.is_nothing:
            return f"{prefix}own: where gradients begin, rows are in other repeats than the pass"
        return None
