"""Named architectures: flat options, as a configuration file gives them, to a ``ModelConfig``.

An architecture is a dataclass of options and a method that turns them into a feed-forward and an
attention; everything else is common. ``ARCHITECTURES`` is the whole menu.
"""

from __future__ import annotations

import abc
import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from moeut.blocks.attention import AttentionOptions as Attention
from moeut.blocks.attention import DenseAttention, SwitchHead
from moeut.blocks.feed_forward import DenseFeedForward, SigmaMoE
from moeut.blocks.feed_forward import FeedForwardOptions as FeedForward
from moeut.blocks.norms import NormPlacement
from moeut.blocks.positions import Learned, NoPosition, Relative, Rotary, Sinusoidal
from moeut.blocks.positions import PositionOptions as Position
from moeut.config import Form, ModelConfig
from moeut.options import check_type, nearest
from moeut.recurrence.schedule import Depth
from moeut.recurrence.schedule import Order as Schedule
from moeut.sizing import match_parameters

RouterInput = Literal["sigmoid", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Options(abc.ABC):
    """Options that every architecture takes."""

    name: ClassVar[str]

    d_model: int = 128
    """Width of the residual stream."""
    num_layers: int = 4
    """Applied layers of each stack: distinct layers × repeats."""
    num_encoder_layers: int | None = None
    """Applied layers of the encoder, where they differ from ``num_layers``."""
    num_decoder_layers: int | None = None
    """Applied layers of the decoder, where they differ from ``num_layers``."""
    num_heads: int = 4
    """Attention heads (H)."""
    head_size: int | None = None
    """Channels of a head; left out: d_model / num_heads."""
    position: Literal["rotary", "relative", "sinusoidal", "learned", "none"] = "rotary"
    """What tells positions apart."""
    rotary_fraction: float = 0.5
    """Share of the head's channels that ``position: rotary`` rotates."""
    position_scale: Literal["none", "inverse_sqrt"] = "none"
    """Factor on the sinusoids of ``position: sinusoidal``; ``inverse_sqrt``: 1/sqrt(d_model)."""
    max_length: int = 1024
    """Positions that ``position: learned`` has vectors for."""
    norm: NormPlacement = "pre"
    """Where the layer norms stand: before the sublayers, after, or (``peri``) only before what
    precedes a softmax or a sigmoid."""
    norm_input: bool = False
    """Layer norm without weights on the embedded input."""
    final_norm: bool | None = None
    """Layer norm after the last layer; left out: yes, except with ``norm: post``."""
    dropout: float = 0.0
    """Dropout on the embedded input, the sublayers' outputs and dense hidden activations."""
    attention_dropout: float | None = None
    """Dropout on attention weights; left out: the same as ``dropout``."""
    tie_embeddings: bool = False
    """Share the output projection with the embedding of the output vocabulary."""
    embedding_scale: Literal["none", "sqrt_d_model"] = "none"
    """Factor on token embeddings."""
    initialization: Literal["moeut", "depth_scaled", "glorot", "normal", "kaiming"] = "depth_scaled"
    """Distribution of the initial weights; the table is in ``moeut.initialization``."""
    pooling: Literal["first", "last"] = "first"
    """Column that a classifier reads: the first, or the last real one."""
    match_parameters: int | None = None
    """Parameter budget: size the free width (dense: ``feed_forward_size``, experts:
    ``num_experts``) so that the count comes nearest to it."""

    def group_size_of(self, num_layers: int) -> int:
        """Return the number of distinct layers in a stack of ``num_layers`` applied ones."""
        return num_layers

    def schedule_of(self) -> Schedule:
        """Return the order in which distinct layers are applied."""
        return "cycle"

    @abc.abstractmethod
    def attention(self) -> Attention:
        """Return the attention of every layer."""

    @abc.abstractmethod
    def feed_forward(self) -> FeedForward:
        """Return the feed-forward of every layer."""

    def resolved_head_size(self) -> int:
        """Return the channels of a head; raise if they are left out and do not divide."""
        if self.head_size is not None:
            return self.head_size
        if self.d_model < 1:
            raise ValueError(f"d_model={self.d_model}: must be a whole number of at least 1")
        if self.num_heads < 1 or self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads}: must divide d_model={self.d_model} unless head_size "
                "is given"
            )
        return self.d_model // self.num_heads

    def resolved_attention_dropout(self) -> float:
        """Return the dropout on attention weights."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout


@dataclass(frozen=True, kw_only=True)
class TransformerOptions(Options):
    """The dense Transformer, every layer distinct."""

    name: ClassVar[str] = "transformer"

    feed_forward_size: int = 512
    """Hidden units of the feed-forward."""
    feed_forward_bias: bool = True
    """Biases in the feed-forward."""

    def attention(self) -> Attention:
        return DenseAttention(
            num_heads=self.num_heads,
            head_size=self.resolved_head_size(),
            dropout=self.resolved_attention_dropout(),
        )

    def feed_forward(self) -> FeedForward:
        return DenseFeedForward(
            hidden_size=self.feed_forward_size, bias=self.feed_forward_bias, dropout=self.dropout
        )


@dataclass(frozen=True, kw_only=True)
class UniversalOptions(TransformerOptions):
    """The Universal Transformer: one dense layer (or a small group) repeated in depth."""

    name: ClassVar[str] = "universal"

    group_size: int = 1
    """Distinct layers of each stack (G)."""
    schedule: Schedule = "cycle"
    """Order of the distinct layers: ``cycle`` ABAB, ``sequence`` AABB."""

    def group_size_of(self, num_layers: int) -> int:
        return self.group_size

    def schedule_of(self) -> Schedule:
        return self.schedule


@dataclass(frozen=True, kw_only=True)
class SigmaMoEOptions(Options):
    """σ-MoE without sharing: every layer distinct, one value and output projection per head,
    both gated."""

    name: ClassVar[str] = "sigma_moe"

    norm: NormPlacement = "peri"
    """Where the layer norms stand: before the sublayers, after, or (``peri``) only before what
    precedes a softmax or a sigmoid."""
    initialization: Literal["moeut", "depth_scaled", "glorot", "normal", "kaiming"] = "moeut"
    """Distribution of the initial weights; the table is in ``moeut.initialization``."""
    num_experts: int = 16
    """Experts of the feed-forward (N_E)."""
    expert_size: int = 32
    """Hidden units of an expert."""
    top_k: int = 4
    """Active experts per token (K)."""
    router: RouterInput = "sigmoid"
    """Gates: ``sigmoid``, or ``softmax`` over all experts."""
    balance_loss: float = 0.01
    """Weight of the entropy balance loss of the feed-forward's router (gamma)."""
    expert_dropout: float = 0.0
    """Probability that an expert cannot be chosen for a token, in training."""
    renormalise_router: bool = False
    """Initialise all router rows of the feed-forward with one norm."""

    def attention(self) -> Attention:
        return DenseAttention(
            num_heads=self.num_heads,
            head_size=self.resolved_head_size(),
            gates="value_and_output",
            dropout=self.resolved_attention_dropout(),
        )

    def feed_forward(self) -> FeedForward:
        return SigmaMoE(
            num_experts=self.num_experts,
            expert_size=self.expert_size,
            top_k=self.top_k,
            router=self.router,
            balance_loss=self.balance_loss,
            expert_dropout=self.expert_dropout,
            renormalise_router=self.renormalise_router,
        )


@dataclass(frozen=True, kw_only=True)
class MoEUTOptions(SigmaMoEOptions):
    """MoEUT: a group of layers repeated in depth, σ-MoE feed-forward, SwitchHead attention."""

    name: ClassVar[str] = "moeut"

    group_size: int = 2
    """Distinct layers of each stack (G)."""
    schedule: Schedule = "cycle"
    """Order of the distinct layers: ``cycle`` ABAB, ``sequence`` AABB."""
    attention_experts: int = 4
    """Value and output experts per head (N_A); 1: dense projections with ``attention_gates``."""
    attention_top_k: int = 2
    """Active attention experts per head and token (k)."""
    attention_balance_loss: float = 0.001
    """Weight of the entropy balance loss of the attention's routers (delta)."""
    attention_expert_dropout: float = 0.0
    """Probability that an attention expert cannot be chosen for a token, in training."""
    attention_gates: Literal["none", "output", "value_and_output"] = "output"
    """Sigmoid gates of each head with ``attention_experts: 1``."""
    renormalise_attention_experts: bool = True
    """Initialise value and output experts with equal norm over experts."""

    def group_size_of(self, num_layers: int) -> int:
        return self.group_size

    def schedule_of(self) -> Schedule:
        return self.schedule

    def attention(self) -> Attention:
        if self.attention_experts == 1:
            return DenseAttention(
                num_heads=self.num_heads,
                head_size=self.resolved_head_size(),
                gates=self.attention_gates,
                dropout=self.resolved_attention_dropout(),
            )
        if self.attention_top_k > self.attention_experts:
            raise ValueError(
                f"attention_top_k={self.attention_top_k}: must be at most "
                f"attention_experts={self.attention_experts}"
            )
        return SwitchHead(
            num_heads=self.num_heads,
            head_size=self.resolved_head_size(),
            num_experts=self.attention_experts,
            top_k=self.attention_top_k,
            balance_loss=self.attention_balance_loss,
            expert_dropout=self.attention_expert_dropout,
            dropout=self.resolved_attention_dropout(),
            renormalise_experts=self.renormalise_attention_experts,
        )


ARCHITECTURES: dict[str, type[Options]] = {
    "transformer": TransformerOptions,
    "universal": UniversalOptions,
    "moeut": MoEUTOptions,
    "sigma_moe": SigmaMoEOptions,
}


def architecture(
    name: str,
    *,
    form: Form,
    vocabulary_size: int,
    source_vocabulary_size: int | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> ModelConfig:
    """Return the config of a named architecture with the given options.

    ``options`` are plain values, as YAML gives them; what is left out has the default of the
    architecture's dataclass in ``ARCHITECTURES``. Raises ``ValueError`` for an unknown name or
    option, a value of a wrong type, and sizes that do not fit together.
    """
    return from_options(
        read_options(name, options),
        form=form,
        vocabulary_size=vocabulary_size,
        source_vocabulary_size=source_vocabulary_size,
        num_classes=num_classes,
    )


def read_options(name: str, options: dict[str, Any]) -> Options:
    """Return the option dataclass of the architecture ``name``, its values checked by type."""
    if name not in ARCHITECTURES:
        raise ValueError(
            f"architecture={name!r}: expected one of {', '.join(ARCHITECTURES)}"
            f"{nearest(name, ARCHITECTURES)}"
        )
    chosen = ARCHITECTURES[name]
    allowed = [field.name for field in dataclasses.fields(chosen)]
    hints = typing.get_type_hints(chosen)
    for option, value in options.items():
        if option not in allowed:
            raise ValueError(
                f"{option}={value!r}: architecture {name!r} takes {', '.join(allowed)}"
                f"{nearest(option, allowed)}"
            )
        check_type(option, value, hints[option])
    return chosen(**options)


def from_options(
    options: Options,
    *,
    form: Form,
    vocabulary_size: int,
    source_vocabulary_size: int | None = None,
    num_classes: int | None = None,
) -> ModelConfig:
    """Return the config that ``options`` describe, sized to ``match_parameters`` if it is set."""
    has_encoder = form in ("encoder_decoder", "encoder_classifier")
    has_decoder = form in ("encoder_decoder", "decoder_lm")
    where = f"form={form!r}"
    _refuse_unused(options, "num_encoder_layers", used=has_encoder, where=where)
    _refuse_unused(options, "num_decoder_layers", used=has_decoder, where=where)
    _refuse_unused(options, "pooling", used=form == "encoder_classifier", where=where)
    for option, owner in _POSITION_OPTIONS.items():
        _refuse_unused(
            options,
            option,
            used=options.position == owner,
            where=f"position={options.position!r}",
        )
    if isinstance(options, MoEUTOptions):
        for option in _ATTENTION_OPTIONS:
            # The gates belong to the one-expert case, all others to several experts.
            used = (option == "attention_gates") == (options.attention_experts == 1)
            where = f"attention_experts={options.attention_experts}"
            _refuse_unused(options, option, used=used, where=where)
    if options.match_parameters is not None:
        options = _without_free_width(options)
    depths = [_depth(options, n) for n in (options.num_encoder_layers, options.num_decoder_layers)]
    config = ModelConfig(
        form=form,
        d_model=options.d_model,
        depth=depths[1] if has_decoder else depths[0],
        encoder_depth=depths[0] if has_encoder and has_decoder else None,
        attention=options.attention(),
        feed_forward=options.feed_forward(),
        position=_position(options),
        norm=options.norm,
        norm_input=options.norm_input,
        final_norm=options.final_norm,
        dropout=options.dropout,
        vocabulary_size=vocabulary_size,
        source_vocabulary_size=source_vocabulary_size,
        num_classes=num_classes,
        pooling=options.pooling,
        tie_embeddings=options.tie_embeddings,
        embedding_scale=options.embedding_scale,
        initialization=options.initialization,
    )
    if options.match_parameters is None:
        return config
    return match_parameters(config, options.match_parameters)


def _depth(options: Options, num_layers: int | None) -> Depth:
    num_layers = options.num_layers if num_layers is None else num_layers
    group = options.group_size_of(num_layers)
    if num_layers < 1 or group < 1:
        name, value = ("num_layers", num_layers) if num_layers < 1 else ("group_size", group)
        raise ValueError(f"{name}={value}: must be a whole number of at least 1")
    if num_layers % group:
        divisors = [g for g in range(1, num_layers + 1) if num_layers % g == 0]
        raise ValueError(
            f"group_size={group}: must divide num_layers={num_layers}; "
            f"allowed: {', '.join(map(str, divisors))}"
        )
    return Depth(group=group, repeats=num_layers // group, order=options.schedule_of())


def _position(options: Options) -> Position:
    if options.position == "rotary":
        return Rotary(fraction=options.rotary_fraction)
    if options.position == "sinusoidal":
        return Sinusoidal(scale=options.position_scale)
    if options.position == "learned":
        return Learned(max_length=options.max_length)
    return Relative() if options.position == "relative" else NoPosition()


_POSITION_OPTIONS = {
    "rotary_fraction": "rotary",
    "position_scale": "sinusoidal",
    "max_length": "learned",
}


_ATTENTION_OPTIONS = (
    "attention_top_k",
    "attention_balance_loss",
    "attention_expert_dropout",
    "renormalise_attention_experts",
    "attention_gates",
)


def _without_free_width(options: Options) -> Options:
    """Refuse a width that ``match_parameters`` replaces, and leave room for the active experts."""
    where = f"match_parameters={options.match_parameters}"
    if isinstance(options, SigmaMoEOptions):
        _refuse_unused(options, "num_experts", used=False, where=where)
        num_experts = max(options.num_experts, options.top_k)
        return dataclasses.replace(options, num_experts=num_experts)
    _refuse_unused(options, "feed_forward_size", used=False, where=where)
    return options


def _refuse_unused(options: Options, option: str, *, used: bool, where: str) -> None:
    """Raise if an option that has no effect here was set to something else than its default."""
    value = getattr(options, option)
    default = next(f.default for f in dataclasses.fields(options) if f.name == option)
    if not used and value != default:
        raise ValueError(f"{option}={value!r}: has no effect with {where}")
