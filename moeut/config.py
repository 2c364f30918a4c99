"""What describes a model: one frozen tree of small dataclasses.

``moeut.design.Blueprint`` holds every option but what the task decides, under the keys that a
configuration file names under ``model:``. ``ModelConfig`` adds the form and the sizes of the
vocabularies. ``config.to_dict()`` gives plain data and ``ModelConfig.from_dict`` reads it back;
that is what ``config.json`` beside saved weights holds.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from moeut.blocks.updates import DeepNorm, deepnorm_of_pair
from moeut.design import Blueprint
from moeut.options import OptionError, Options, require, require_positive
from moeut.recurrence.schedule import Depth
from moeut.recurrence.stack_config import StackConfig

Form = Literal["decoder_lm", "encoder_decoder", "encoder_classifier", "encoder_labeller"]

ENCODERS: tuple[Form, ...] = ("encoder_classifier", "encoder_labeller")
"""Forms of one bidirectional stack, which name classes."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Blueprint):
    """Everything that decides a model's parameters and its function."""

    form: Form
    """A causal language model, an encoder-decoder, a classifier of sequences, or of positions."""
    vocabulary_size: int
    """Tokens that the model reads (all forms but one) or writes (encoder_decoder)."""
    source_vocabulary_size: int | None = None
    """Tokens that the encoder of an encoder_decoder reads."""
    num_classes: int | None = None
    """Output classes of an encoder_classifier or an encoder_labeller."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "vocabulary_size", "source_vocabulary_size", "num_classes")
        # A size that a form asks for has to be there; no other form may have it.
        owners: dict[str, tuple[Form, ...]] = {
            "source_vocabulary_size": ("encoder_decoder",),
            "num_classes": ENCODERS,
        }
        for name, forms in owners.items():
            value = getattr(self, name)
            needed = self.form in forms
            where = f"form={self.form!r}"
            require(value is not None or not needed, name, value, f"missing; {where} needs it")
            require(value is None or needed, name, value, f"{where} does not take it")
        for name in ("position", "input_position"):
            try:
                getattr(self, name).check_told(self.form == "encoder_decoder")
            except OptionError as error:
                raise error.under(name) from None
        self._refuse("encoder_depth", unless="encoder_decoder")
        one_width = self.form != "encoder_decoder" or self.core_width == self.d_model
        said = "cannot be had in an encoder_decoder, whose layers read a memory of width d_model"
        require(one_width, "core_width", self.core_width, said)
        self._refuse("pooling", unless="encoder_classifier")
        self._refuse_states()
        if self.form in ENCODERS:
            said = "has no effect without an output vocabulary"
            require(self.logit_scale == 1.0, "logit_scale", self.logit_scale, said)
            require(self.logit_cap is None, "logit_cap", self.logit_cap, said)
            narrow = self.embedding_size != self.d_model
            require(narrow or not self.head_projection, "head_projection", True, said)
        reason = self.halting.looks_ahead()
        if reason is not None and self.form not in ENCODERS:
            said = f"form={self.form!r} has a stack that looks back alone: {reason}"
            raise OptionError("halting", self.halting.to_dict(), said)
        if self.tie_embeddings and self.form in ENCODERS:
            said = f"form={self.form!r} has no output vocabulary"
            raise OptionError("tie_embeddings", True, said)
        _ = self.stacks  # which refuses what a causal stack cannot have

    def _refuse_states(self) -> None:
        """Refuse what revises a whole answer in forms that write token by token."""
        for name, is_on in {
            "carry": self.carry.is_supervised,
            "prefix": self.prefix.rows > 0,
        }.items():
            said = (
                f"form={self.form!r} writes token by token, but a whole answer is revised: "
                f"it needs one of {', '.join(ENCODERS)}"
            )
            require(self.form in ENCODERS or not is_on, name, getattr(self, name).to_dict(), said)

    def _refuse(self, name: str, *, unless: Form) -> None:
        """Raise ``OptionError`` if an option of one form alone is set in another."""
        field = next(field for field in dataclasses.fields(self) if field.name == name)
        value = getattr(self, name)
        said = f"has no effect with form={self.form!r}, only with {unless}"
        plain = value.to_dict() if isinstance(value, Options) else value
        require(self.form == unless or value == field.default, name, plain, said)

    @property
    def stacks(self) -> dict[str, StackConfig]:
        """The stacks that the form has, by name, encoder first."""
        both = self.form == "encoder_decoder"
        stacks = {}
        if self.form != "decoder_lm":
            depth = self.encoder_depth or self.depth
            stacks["encoder"] = self._stack(depth, causal=False, cross_attention=False)
        if self.form not in ENCODERS:
            stacks["decoder"] = self._stack(self.depth, causal=True, cross_attention=both)
        return stacks

    def _stack(self, depth: Depth, *, causal: bool, cross_attention: bool) -> StackConfig:
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(StackConfig)
            if hasattr(self, field.name) and field.name != "depth"
        }
        if not causal and self.form == "encoder_decoder":
            assert self.source_vocabulary_size is not None
            shared["vocabulary_size"] = self.source_vocabulary_size
            for name in ("position", "input_position"):
                shared[name] = shared[name].of_source()
        shared["update"] = self.update.in_stack(num_applications=self._num_applied(depth))
        if self.form == "encoder_decoder" and self.initialization == "deepnorm":
            assert isinstance(self.update, DeepNorm)
            encoder, decoder = self.applied_layers
            alphas = deepnorm_of_pair(encoder, decoder)[causal]
            shared["update"] = self.update.with_default(alphas.alpha)
        for name in ("attention", "feed_forward"):
            try:
                shared[name] = getattr(self, name).in_stack(causal=causal)
            except OptionError as error:
                raise error.under(name) from None
        return StackConfig(depth=depth, causal=causal, cross_attention=cross_attention, **shared)

    @property
    def applied_layers(self) -> tuple[int, int]:
        """Applications of layers in encoder and decoder."""
        encoder = self.encoder_depth or self.depth
        return self._num_applied(encoder), self._num_applied(self.depth)

    def _num_applied(self, depth: Depth) -> int:
        return len(self.recursion.places(depth))

    @property
    def embedding_factor(self) -> float:
        """What token embeddings are multiplied by."""
        return math.sqrt(self.d_model) if self.embedding_scale == "sqrt_d_model" else 1.0

    @property
    def num_outputs(self) -> int:
        """Outputs of the head: classes, or words of the vocabulary."""
        return self.vocabulary_size if self.num_classes is None else self.num_classes
