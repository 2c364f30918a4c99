"""What a model is made of: every option but what the task decides.

The keys are those that a configuration file names under ``model:``. What a block is made of is
described where the block is: ``moeut.blocks`` and ``moeut.recurrence``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from moeut.blocks.attention import ATTENTION, AttentionOptions
from moeut.blocks.embeddings import Prefix
from moeut.blocks.feed_forward import FEED_FORWARD, FeedForwardOptions
from moeut.blocks.norms import NormKind, NormOptions, NormPlacement
from moeut.blocks.own import Own
from moeut.blocks.positions import INPUT_POSITION, POSITION, NoPosition, PositionOptions, Rotary
from moeut.blocks.updates import UPDATE, Residual, UpdateOptions
from moeut.blocks.value_embeddings import ValueEmbeddings
from moeut.options import (
    OptionError,
    Options,
    derived,
    one_of,
    require,
    require_positive,
    require_probability,
)
from moeut.recurrence.carry import Carry
from moeut.recurrence.conditioning import CONDITIONING, Conditioning, NoConditioning
from moeut.recurrence.controller import HALTING, ControllerOptions, NoHalting
from moeut.recurrence.injection import NoInjection
from moeut.recurrence.schedule import RECURSION, Depth, NoRecursion, RecursionOptions
from moeut.recurrence.stack_config import EmbeddingScale, SharedKeys
from moeut.recurrence.start import InputStart
from moeut.recurrence.state import State

Initialization = Literal[
    "moeut", "depth_scaled", "glorot", "normal", "kaiming", "lecun", "deepnorm"
]


@dataclass(frozen=True, kw_only=True)
class Blueprint(Options):
    """Everything that decides a model but its form and the sizes of its vocabularies.

    What is left out and follows from another option is filled in at construction, so that two
    blueprints of one model are equal.
    """

    d_model: int = 128
    """Width of the residual stream (D)."""
    depth: Depth
    """How many layers there are, and how often they are applied."""
    encoder_depth: Depth | None = None
    """Depth of the encoder of an encoder_decoder, where it differs from ``depth``."""
    recursion: RecursionOptions = one_of(RECURSION, NoRecursion)
    """What a repeat is: one pass through the group, or updates that pass states back and forth."""
    carry: Carry = dataclasses.field(default_factory=Carry)
    """How many passes an answer takes, each from the state that the one before ended with."""
    prefix: Prefix = dataclasses.field(default_factory=Prefix)
    """Learned rows in front of every sequence."""
    state: State = dataclasses.field(default_factory=State)
    """What the recurrence begins from, and how the input enters each repeat."""
    halting: ControllerOptions = one_of(HALTING, NoHalting)
    """Which tokens later repeats still work on."""
    conditioning: Conditioning = one_of(CONDITIONING, NoConditioning)
    """What tells one repeat from another."""
    attention: AttentionOptions = one_of(ATTENTION)
    """Attention of every layer."""
    feed_forward: FeedForwardOptions = one_of(FEED_FORWARD)
    """Feed-forward of every layer."""
    position: PositionOptions = one_of(POSITION, Rotary)
    """What tells positions apart."""
    input_position: PositionOptions = one_of(INPUT_POSITION, NoPosition)
    """What is added to the embedded tokens besides ``position``: another kind than that."""
    norm: NormPlacement = "pre"
    """Where the norms stand: before the sublayers, after, or (``peri``) only before what precedes a
    softmax or a sigmoid; ``sandwich``: before them and on their sum with what they read;
    ``branch``: before them and on what they give."""
    norm_kind: NormKind = "layer"
    """Layer norm; root mean square without a mean and a bias (``rms``); or layer norm with the
    unbiased deviation, to which epsilon is added (``unbiased``)."""
    norm_weights: bool = True
    """Learned weights (and biases) in the norms; false: they only normalise."""
    norm_input: bool = False
    """Norm on the embedded input."""
    norm_input_weights: bool = False
    """Learned weights in the norm on the embedded input."""
    final_norm: bool = derived()
    """Norm after the last layer; left out: yes, except with ``norm: post`` or ``repeat_norm``."""
    repeat_norm: bool = False
    """Norm where each repeat ends, whose result the next repeat goes on with (arXiv 2510.25741)."""
    norm_epsilon: float = 1e-5
    """What every norm adds to the variance."""
    update: UpdateOptions = one_of(UPDATE, Residual)
    """How the output of a sublayer becomes the next state."""
    outer_width: int | None = None
    """Free width of the feed-forward in prelude and coda, where it is not that of the group."""
    core_width: int = derived()
    """Width of the repeated state and its layers, which have as many more heads; left out: d_model.
    Another one needs an injection and ``state.output: linear``, which know both widths."""
    value_embeddings: ValueEmbeddings = dataclasses.field(default_factory=ValueEmbeddings)
    """Learned vectors of tokens that join the values of self-attention."""
    own: Own = dataclasses.field(default_factory=Own)
    """What each repeat has of its own; the rest is shared by all of them."""
    shared_keys: SharedKeys = "none"
    """Whether later repeats use the keys and values of the first one of their layer: ``first``, in
    the place of their own; ``update``, at the tokens that take no part in them."""
    dropout: float = 0.0
    """Dropout on the embedded input and the sublayers' outputs."""
    pooling: Literal["first", "last"] = "first"
    """Column that a classifier reads: the first, or the last real one."""
    tie_embeddings: bool = False
    """Share the output projection with the embedding of the output vocabulary."""
    head_bias: bool = True
    """Bias of the output projection."""
    embedding_size: int = derived()
    """Width of the embeddings (E), which a projection brings to d_model; left out: d_model."""
    head_projection: bool = derived()
    """Projection from d_model to the width of embeddings before the output projection; left out:
    where the two differ. With ``tie_embeddings`` that of the embeddings, transposed, is used."""
    logit_scale: float = 1.0
    """Factor on the logits of a vocabulary."""
    logit_cap: float | None = None
    """Bound c that the logits of a vocabulary are kept within, by c · tanh(logit / c)."""
    embedding_scale: EmbeddingScale = "none"
    """Factor on token embeddings; the tied output projection is never scaled."""
    initialization: Initialization = "depth_scaled"
    """Distribution of the initial weights; the table is in ``moeut.initialization``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "d_model", "outer_width")
        require_probability(self, "dropout")
        for name in ("logit_scale", "logit_cap"):
            value = getattr(self, name)
            is_above = value is None or 0.0 < value < math.inf
            require(is_above, name, value, "must be a finite number above 0")
        require(self.norm_epsilon > 0.0, "norm_epsilon", self.norm_epsilon, "must be above 0")
        said = "has no effect without norm_input"
        require(self.norm_input or not self.norm_input_weights, "norm_input_weights", True, said)
        norms = NormOptions(self.norm_kind, self.norm_epsilon, self.norm_weights)
        try:
            attention = self.attention.within(d_model=self.d_model, dropout=self.dropout)
            attention.check_norms(self.norm, norms)
        except OptionError as error:
            raise error.under("attention") from None
        reason = attention.refused_positions.get(self.position.kind or "")
        if reason is not None:
            said = f"cannot be combined with attention.kind={attention.kind!r}: {reason}"
            raise OptionError("position.kind", self.position.kind, said)
        try:
            self.position.check(attention.head_size)
        except OptionError as error:
            raise error.under("position") from None
        both = self.input_position.kind == self.position.kind != "none"
        said = f"position.kind={self.position.kind!r} adds the same to the embedded tokens already"
        require(not both, "input_position.kind", self.input_position.kind, said)
        if self.initialization == "deepnorm" and self.update.kind != "deepnorm":
            said = f"is what update.kind=deepnorm needs, not {self.update.kind}"
            raise OptionError("initialization", "deepnorm", said)
        self._check_recurrence()
        self._check_recursion()
        try:
            prefix = self.prefix.within(d_model=self.d_model)
        except OptionError as error:
            raise error.under("prefix") from None
        feed_forward = self.feed_forward.within(dropout=self.dropout)
        self._check_own(attention, feed_forward)
        if self.outer_width is not None:
            try:
                feed_forward.with_width(self.outer_width)
            except OptionError as error:
                said = f"gives feed_forward.{error.option}={error.value!r}: {error.expected}"
                raise OptionError("outer_width", self.outer_width, said) from None
        update = self.update.within(dropout=self.dropout)
        try:
            update.check(self.norm)
        except OptionError as error:
            raise error.under("update") from None
        final_norm: bool | None = self.final_norm
        is_normed = self.norm == "post" or self.repeat_norm
        self._fill_in(
            prefix=prefix,
            attention=attention,
            feed_forward=feed_forward,
            update=update,
            final_norm=not is_normed if final_norm is None else final_norm,
            **self._embedding_sizes(),
            core_width=self._check_core(attention),
            encoder_depth=None if self.encoder_depth == self.depth else self.encoder_depth,
        )
        if self.state.output == "final_norm":
            said = "needs final_norm, which it uses a second time"
            require(self.final_norm, "state.output", "final_norm", said)

    def _check_recurrence(self) -> None:
        """Refuse what decides at each repeat where a repeat is no whole pass through the group."""
        halts = not isinstance(self.halting, NoHalting)
        decided = {
            "state": self.state.is_plain or self.state.before == "layer",
            "halting": not halts or self.halting.decides_each_application,
            "repeat_norm": not self.repeat_norm,
            "conditioning": not self.conditioning.decides_at_repeats,
        }
        for name in ("depth", "encoder_depth"):
            depth = getattr(self, name)
            if depth is None:
                continue
            if self.shared_keys != "none":
                said = "shared_keys needs at least 2, or there is no repeat to share with"
                require(depth.is_shared, f"{name}.repeats", depth.repeats, said)
            if not self.own.is_nothing:
                said = "own needs at least 2, or there is nothing that repeats could share"
                require(depth.is_shared, f"{name}.repeats", depth.repeats, said)
            if halts:
                said = "halting needs at least 2, so that a token can go on"
                require(depth.is_shared, f"{name}.repeats", depth.repeats, said)
            if depth.has_whole_repeats:
                continue
            for option, is_off in decided.items():
                said = f"{option} decides at each pass through the group, so it needs cycle"
                require(is_off, f"{name}.order", depth.order, said)

    def _check_own(self, attention: AttentionOptions, feed_forward: FeedForwardOptions) -> None:
        """Refuse what no block of these kinds can have, or share, for each repeat."""
        shared, halting = self.shared_keys, self.halting
        said = (
            f"attention.kind={attention.kind!r} has no queries that could ask shared keys for "
            "something else: each repeat would add once more what the first one mixed"
        )
        require(shared != "first" or attention.has_keys, "shared_keys", shared, said)
        said = f"halting.kind={halting.kind!r} chooses the states that keys are made of"
        require(shared == "none" or not halting.chooses_keys, "shared_keys", shared, said)
        if self.own.is_nothing:
            return
        with torch.device("meta"):
            heads = attention.build(self.d_model, self.position)
            smallest = feed_forward.with_width(feed_forward.smallest_width)
            mapping = smallest.build(self.d_model)
        kinds = {"attention": attention, "feed_forward": feed_forward, "update": self.update}
        named = {name: f"{name}.kind={block.kind!r}" for name, block in kinds.items()}
        try:
            gate = not isinstance(self.update, Residual)
            self.own.check(heads, mapping, named, has_gate=gate, shared_keys=shared)
        except OptionError as error:
            raise error.under("own") from None

    def _check_recursion(self) -> None:
        """Refuse what a recursion decides itself, and a carried state that forgets its input."""
        plain = {
            "state": self.state.is_plain,
            "halting": isinstance(self.halting, NoHalting),
            "repeat_norm": not self.repeat_norm,
            "own": self.own.is_nothing,
            "shared_keys": self.shared_keys == "none",
            "conditioning": isinstance(self.conditioning, NoConditioning),
            "depth.order": self.depth.has_whole_repeats,
            "depth.prelude": self.depth.prelude == 0,
            "depth.coda": self.depth.coda == 0,
        }
        if self.encoder_depth is not None:
            outer = self.encoder_depth.prelude + self.encoder_depth.coda
            plain["encoder_depth.order"] = self.encoder_depth.has_whole_repeats
            plain["encoder_depth with a prelude or coda"] = outer == 0
        kind = self.recursion.kind
        if not isinstance(self.recursion, NoRecursion):
            for option, is_plain in plain.items():
                said = f"has states, injections and networks of its own, so it takes no {option}"
                require(is_plain, "recursion.kind", kind, said)
        elif self.carry.steps > 1:
            steps = self.carry.steps
            said = "needs a recursion, or state.injection, by which a carried state reads the input"
            require(not isinstance(self.state.injection, NoInjection), "carry.steps", steps, said)
            said = "cannot be combined with halting, which begins anew in every pass"
            require(plain["halting"], "carry.steps", steps, said)

    def _check_core(self, attention: AttentionOptions) -> int:
        """Return the width of the repeated state, and refuse one that its layers cannot have."""
        require_positive(self, "core_width")
        given: int | None = self.core_width
        width = self.d_model if given is None else given
        if width == self.d_model:
            return width
        said = f"must be a multiple of attention.head_size={attention.head_size}"
        require(width % attention.head_size == 0, "core_width", width, said)
        fits = {
            "attention.num_key_heads": attention.num_key_heads == attention.num_heads,
            "attention.kind": attention.kind == "dense",
            "position.kind": self.position.kind in ("none", "rotary", "fire"),
            "state.start": not isinstance(self.state.start, InputStart),
            "state.injection": self.state.injection.widens and self.state.before == "repeat",
            "state.output": self.state.output == "linear",
            "recursion": isinstance(self.recursion, NoRecursion),
        }
        for option, is_right in fits.items():
            said = f"cannot be combined with {option}, which knows one width alone"
            require(is_right, "core_width", width, said)
        return width

    def _embedding_sizes(self) -> dict[str, Any]:
        """Return the options of the embeddings' width that are left out."""
        size: int | None = self.embedding_size
        require_positive(self, "embedding_size")
        size = self.d_model if size is None else size
        projected: bool | None = self.head_projection
        narrow = size != self.d_model
        said = "is needed where embedding_size is not d_model"
        require(not narrow or projected is not False, "head_projection", projected, said)
        if narrow and self.prefix.rows:
            raise OptionError("embedding_size", size, "cannot be combined with a prefix")
        return {
            "embedding_size": size,
            "head_projection": narrow if projected is None else projected,
        }

    def _fill_in(self, **values: Any) -> None:
        """Set options of this object, which is still under construction."""
        for name, value in values.items():
            object.__setattr__(self, name, value)
