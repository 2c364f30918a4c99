"""What describes a model: one frozen tree of small dataclasses.

A ``ModelConfig`` holds one or two stacks. A stack is a group of distinct layers, the order in which
they are applied, and the kind of attention, feed-forward and position its layers have. Every kind
is a class of its own, so that an option of another kind is an error, never silently ignored.

``config.to_dict()`` gives plain data (each kind carries its name under ``kind``) and
``ModelConfig.from_dict`` reads it back; that is what ``config.json`` beside saved weights holds.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Form = Literal["decoder_lm", "encoder_decoder", "encoder_classifier"]
Schedule = Literal["cycle", "sequence"]
NormPlacement = Literal["pre", "post", "peri"]
RouterInput = Literal["sigmoid", "softmax"]


class _Checked:
    """A dataclass whose values are of the types that its annotations say."""

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, annotation in _type_hints(own).items():
            check_type(name, getattr(self, name), annotation)


# --- positions --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoPosition(_Checked):
    """No position information besides the causal mask."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class Rotary(_Checked):
    """Rotary position embedding on the first channels of each head (RoPE, rotate-half form)."""

    kind: ClassVar[str] = "rotary"
    fraction: float = 0.5
    """Share of the head's channels that are rotated; the width is rounded down to even."""
    base: float = 10000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0.0 < self.fraction <= 1.0, "fraction", self.fraction, "above 0 and at most 1")
        _require(1.0 < self.base < math.inf, "base", self.base, "a finite number above 1")

    def width(self, head_size: int) -> int:
        """Return the number of rotated channels; raise ``ValueError`` if there are none."""
        width = int(self.fraction * head_size) // 2 * 2
        if width == 0:
            raise ValueError(
                f"position.fraction={self.fraction!r}: rotates no channel of a head of "
                f"head_size={head_size}; it must reach 2 channels"
            )
        return width


@dataclass(frozen=True, kw_only=True)
class Relative(_Checked):
    """Transformer-XL relative positions in self-attention; cross-attention has none."""

    kind: ClassVar[str] = "relative"
    learned_scale: bool = False
    """Logit scale as a learned scalar, initialised at 1/sqrt(head_size)."""


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(_Checked):
    """Fixed sinusoids added to the embedding, computed in float32."""

    kind: ClassVar[str] = "sinusoidal"
    scale: Literal["none", "inverse_sqrt"] = "none"
    """``inverse_sqrt`` divides the sinusoids by sqrt(d_model) (embedding downscaling, PED)."""


@dataclass(frozen=True, kw_only=True)
class Learned(_Checked):
    """A learned vector per absolute position, added to the embedding."""

    kind: ClassVar[str] = "learned"
    max_length: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.max_length >= 1, "max_length", self.max_length, "at least 1")


Position = NoPosition | Rotary | Relative | Sinusoidal | Learned


# --- attention --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DenseAttention(_Checked):
    """Multi-head attention with dense projections without bias."""

    kind: ClassVar[str] = "dense"
    num_heads: int
    head_size: int
    attention_gates: Literal["none", "output", "value_and_output"] = "none"
    """Sigmoid gate per head: on the output (one-expert case of the MoEUT release), or on values and
    output (one-expert case of its training code)."""
    dropout: float = 0.0
    """Dropout on attention weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "num_heads", "head_size")
        _require_dropout(self, "dropout")


@dataclass(frozen=True, kw_only=True)
class SwitchHead(_Checked):
    """Attention whose value and output projections are experts, chosen per head and token."""

    kind: ClassVar[str] = "switch_head"
    num_heads: int
    head_size: int
    num_experts: int
    """Experts per head (N_A)."""
    top_k: int = 2
    """Active experts per head and token (k)."""
    balance_loss: float = 0.001
    """Weight of the entropy balance loss of both routers (delta)."""
    expert_dropout: float = 0.0
    dropout: float = 0.0
    renormalise_experts: bool = True
    """Initialise expert weights with equal norm over experts (training code: ``norm_init``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "num_heads", "head_size", "num_experts", "top_k")
        _require_top_k(self)
        _require_balance_loss(self)
        _require_dropout(self, "dropout", "expert_dropout")


Attention = DenseAttention | SwitchHead


# --- feed-forward -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DenseFeedForward(_Checked):
    """Two dense layers with ReLU between them."""

    kind: ClassVar[str] = "dense"
    hidden_size: int
    bias: bool = True
    dropout: float = 0.0
    """Dropout on the hidden activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "hidden_size")
        _require_dropout(self, "dropout")


@dataclass(frozen=True, kw_only=True)
class SigmaMoE(_Checked):
    """Mixture of small ReLU experts with non-competitive sigmoid gates (σ-MoE)."""

    kind: ClassVar[str] = "sigma_moe"
    num_experts: int
    """N_E."""
    expert_size: int = 128
    top_k: int = 12
    """Active experts per token (K)."""
    router: RouterInput = "sigmoid"
    """``softmax``: gates are a softmax over all experts, before the top-k, not renormalised."""
    balance_loss: float = 0.01
    """Weight of the entropy balance loss (gamma)."""
    expert_dropout: float = 0.0
    """Probability that an expert cannot be chosen for a token, in training."""
    renormalise_router: bool = False
    """Initialise all router rows with one norm (the release does, the training code does not)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "num_experts", "expert_size", "top_k")
        _require_top_k(self)
        _require_balance_loss(self)
        _require_dropout(self, "expert_dropout")


FeedForward = DenseFeedForward | SigmaMoE


# --- stack and model --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StackConfig(_Checked):
    """A stack of layers applied in depth, ``group_size`` of them distinct."""

    num_layers: int
    """Applied layers: repeats × group_size."""
    group_size: int
    """Distinct layers (G); ``num_layers``: nothing is shared, 1: the Universal Transformer."""
    attention: Attention
    feed_forward: FeedForward
    position: Position = field(default_factory=Rotary)
    schedule: Schedule = "cycle"
    """``cycle`` applies ABAB, ``sequence`` AABB."""
    norm: NormPlacement = "pre"
    """``peri`` norms only what precedes a softmax or sigmoid: queries, keys and routers."""
    norm_input: bool = False
    """Layer norm without weights on the embedded input."""
    final_norm: bool = True
    """Layer norm after the last application."""
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """Dropout on each sublayer's output and on the embedded input."""
    float32_routing: bool = False
    """Keep rotary frequencies, the logit scale and the routers of SwitchHead in float32 even in a
    float64 model, as the MoEUT release does. In any other precision it changes nothing."""

    @property
    def num_repeats(self) -> int:
        """Passes through the group."""
        return self.num_layers // self.group_size

    @property
    def is_shared(self) -> bool:
        """Whether any layer is applied more than once."""
        return self.group_size < self.num_layers

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "num_layers", "group_size")
        if self.num_layers % self.group_size:
            divisors = [g for g in range(1, self.num_layers + 1) if self.num_layers % g == 0]
            raise ValueError(
                f"group_size={self.group_size}: must divide num_layers={self.num_layers}; "
                f"allowed: {', '.join(map(str, divisors))}"
            )
        if isinstance(self.position, Rotary):
            self.position.width(self.attention.head_size)
        _require(self.norm_epsilon > 0.0, "norm_epsilon", self.norm_epsilon, "above 0")
        _require_dropout(self, "dropout")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checked):
    """Everything that decides a model's parameters and its function."""

    form: Form
    d_model: int
    vocabulary_size: int
    """Tokens that the model reads (decoder_lm, encoder_classifier) or writes (encoder_decoder)."""
    decoder: StackConfig | None = None
    """The causal stack of a decoder_lm or encoder_decoder."""
    encoder: StackConfig | None = None
    """The bidirectional stack of an encoder_decoder or encoder_classifier."""
    source_vocabulary_size: int | None = None
    """Tokens that the encoder of an encoder_decoder reads."""
    num_classes: int | None = None
    """Output classes of an encoder_classifier."""
    pooling: Literal["first", "last"] = "first"
    """Column that an encoder_classifier reads: the first, or the last real one."""
    tie_embeddings: bool = False
    """Output projection shares the weight of the (output-side) embedding."""
    head_bias: bool = True
    embedding_scale: Literal["none", "sqrt_d_model"] = "none"
    """Factor on token embeddings; the tied output projection is never scaled."""
    initialization: Literal["moeut", "depth_scaled", "glorot", "normal", "kaiming"] = "moeut"
    """Scheme of ``moeut.initialization``; its docstring has the table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "d_model", "vocabulary_size")
        wanted = {
            "decoder_lm": {"decoder"},
            "encoder_decoder": {"encoder", "decoder", "source_vocabulary_size"},
            "encoder_classifier": {"encoder", "num_classes"},
        }[self.form]
        for name in ("encoder", "decoder", "source_vocabulary_size", "num_classes"):
            present = getattr(self, name) is not None
            if present != (name in wanted):
                verb = "needs" if name in wanted else "does not take"
                raise ValueError(f"form={self.form!r} {verb} {name!r}")
        _require_positive(self, *wanted & {"source_vocabulary_size", "num_classes"})
        if self.form != "decoder_lm" and any(s.float32_routing for s in self.stacks.values()):
            raise ValueError(f"float32_routing=True: only form='decoder_lm', not {self.form!r}")
        if self.form == "encoder_classifier" and self.tie_embeddings:
            raise ValueError(
                "tie_embeddings=True: form='encoder_classifier' has no output vocabulary"
            )

    @property
    def stacks(self) -> dict[str, StackConfig]:
        """The stacks that are there, by name, encoder first."""
        pairs = {"encoder": self.encoder, "decoder": self.decoder}
        return {name: stack for name, stack in pairs.items() if stack is not None}

    def match_parameters(self, budget: int) -> ModelConfig:
        """Return this config with its free width sized to ``budget`` parameters.

        The free width is ``hidden_size`` of dense and ``num_experts`` of expert feed-forwards; see
        ``moeut.sizing.match_parameters``.
        """
        from moeut.sizing import match_parameters  # sizing reads configs: import at call time

        return match_parameters(self, budget)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that ``from_dict`` reads back to an equal config."""
        return _to_plain(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Read a config from plain data, refusing unknown keys and kinds by their dotted path."""
        return _from_plain(cls, data, path="model")


# --- checks -----------------------------------------------------------------------------


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= 1, name, value, "a whole number of at least 1")


def _require_dropout(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0.0 <= value < 1.0, name, value, "at least 0 and below 1")


def _require_top_k(config: Any) -> None:
    if config.top_k > config.num_experts:
        raise ValueError(f"top_k={config.top_k}: must be at most num_experts={config.num_experts}")


def _require_balance_loss(config: Any) -> None:
    value = config.balance_loss
    _require(0.0 <= value < math.inf, "balance_loss", value, "a finite number of at least 0")


@functools.cache
def _type_hints(chosen: type) -> dict[str, Any]:
    hints = typing.get_type_hints(chosen)
    return {one.name: hints[one.name] for one in dataclasses.fields(chosen)}


def check_type(name: str, value: Any, annotation: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is of the annotated type; an int passes for a float."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    is_bool = isinstance(value, bool)
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            allowed = typing.get_args(kind)
            if value in allowed:
                return
            raise ValueError(
                f"{name}={value!r}: expected one of {', '.join(allowed)}{nearest(value, allowed)}"
            )
        accepted = (int, float) if kind is float else kind
        if isinstance(value, accepted) and (kind is bool or not is_bool):
            return
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    allowed_words = [words.get(kind, kind.__name__) for kind in kinds if kind is not types.NoneType]
    raise ValueError(f"{name}={value!r}: expected {' or '.join(allowed_words)}")


def nearest(value: object, allowed: typing.Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest allowed word, or an empty string."""
    match = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


# --- plain data -------------------------------------------------------------------------


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _from_plain(annotation: Any, data: Any, path: str) -> Any:
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    if not classes or data is None:
        return data
    if not isinstance(data, dict):
        raise ValueError(f"{path}={data!r}: expected a mapping")
    data = dict(data)
    chosen: Any = classes[0]
    if hasattr(chosen, "kind"):
        kinds = {option.kind: option for option in classes}  # type: ignore[union-attr]
        kind = data.pop("kind", None)
        if kind not in kinds:
            raise ValueError(
                f"{path}.kind={kind!r}: expected one of {', '.join(kinds)}{nearest(kind, kinds)}"
            )
        chosen = kinds[kind]
    hints = _type_hints(chosen)
    names = list(hints)
    for name in data:
        if name not in names:
            raise ValueError(
                f"{path}.{name}: unknown; {chosen.__name__} takes {', '.join(names)}"
                f"{nearest(name, names)}"
            )
    values = {
        name: _from_plain(hints[name], value, f"{path}.{name}") for name, value in data.items()
    }
    try:
        return chosen(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
