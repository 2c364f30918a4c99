"""Import recurrent-depth language models of seal-rg/recurrent-pretraining (at 59e0b69).

Two codes are read: the released one (``raven_modeling_minimal``, arXiv 2502.05171), and that of its
training (``model_dynamic``), whose options are wider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from moeut.blocks.attention import AttentionOptions, DenseAttention
from moeut.blocks.feed_forward import DenseFeedForward, FeedForwardOptions, GatedFeedForward
from moeut.blocks.norms import NormPlacement
from moeut.blocks.positions import NoPosition, PositionOptions, Rotary
from moeut.config import ModelConfig
from moeut.interop.mapping import (
    RawOptions,
    TensorMap,
    load,
    matrix_shape,
    rename,
)
from moeut.models import DecoderLM
from moeut.recurrence.conditioning import Conditioning, Network, NoConditioning
from moeut.recurrence.injection import (
    AddInjection,
    FeedForwardInjection,
    GateInjection,
    Injection,
    LinearInjection,
)
from moeut.recurrence.schedule import Depth
from moeut.recurrence.start import NoiseStart, Start, ZeroStart
from moeut.recurrence.state import State

BLOCKS: dict[str, NormPlacement] = {
    "SandwichBlock": "sandwich",
    "SandwichBlockSwin": "branch",
    "TransformerPreNormBlock": "pre",
    "TransformerPostNormBlock": "post",
}
NORMS = {
    "RMSNorm": "rms",
    "RMSNorm_llama": "rms",
    "TorchRMSNorm": "rms",
    "GemmalikeRMS": "rms",
    "FusedRMSNorm": "rms",
    "LayerNorm": "layer",
}
ACTIVATIONS = {"GELU": "gelu", "SiLU": "silu", "ReLU": "relu", "ReLU2": "half_squared_relu"}
_PLAIN = [
    "scaled",
    "scaled-zero",
    "scaled-stuck",
    "scaled-large-embed",
    "normal",
    "small",
    "bert",
    "kaiming",
    "wang",
    "mitchell",
    "llama",
    "llama-by-dim",
    "megatron",
    "megatron2",
    "illiterate",
]
INITIALIZATIONS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(_PLAIN, ("none", 0.0)),
    "takase": ("sqrt_d_model", 0.0),
    "takase-scaled": ("sqrt_d_model", 2.0 / 5.0),
    "llama-by-dim-ls": ("none", 1.0),
    "scaled-and-logit-scale": ("none", 1.0),
}
"""By ``init_strategy``: the factor on embeddings, and c of the factor sqrt(c/D) on logits, or 0."""

RELEASED: dict[str, Any] = {
    "block_class_name": "SandwichBlock",
    "init_strategy": "takase",
    "injection_type": "linear",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "norm_class_name": "RMSNorm_llama",
    "norm_eps": 1e-6,
    "qk_bias": True,
    "tie_embeddings": True,
}
TRAINED: dict[str, Any] = {
    "block_class_name": "TransformerPreNormBlock",
    "init_strategy": "scaled",
    "injection_type": "add",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "GELU",
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "qk_bias": False,
    "tie_embeddings": False,
}
"""What the two codes take where an option is left out."""

STARTS = {"normal": "normal", "embed": "embed", "like-init": "like_init", "unit": "unit"}


def from_huginn(options: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the model that the code makes of ``options`` with ``state_dict``.

    ``options`` are those of a published ``config.json``, which say ``n_heads``, or of the training
    code, which say ``num_attention_heads``; what either leaves out has that code's default. The
    vocabulary is as large as the embedding has rows.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    vocabulary_size, _ = matrix_shape(state_dict, "transformer.wte.weight")
    config = huginn_config(options, vocabulary_size=vocabulary_size)
    tied = ("lm_head.weight",) if config.tie_embeddings else ()
    unread = ("*.res_scale", "*.skip_scale")  # buffers of blocks that do not read them
    ignore = ("freqs_cis", *unread, *tied)
    return load(DecoderLM, config, huginn_maps(config), state_dict, ignore=ignore)


def huginn_config(options: dict[str, Any], *, vocabulary_size: int) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    is_released = options.get("n_heads") is not None
    read = RawOptions((RELEASED if is_released else TRAINED) | options, source="Huginn")
    d_model = read.integer("n_embd")
    scale, on_logits = INITIALIZATIONS[read.word("init_strategy", INITIALIZATIONS)]
    kind = NORMS[read.word("norm_class_name", NORMS)]
    refuse_unsupported(read)
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=vocabulary_size,
        depth=Depth(
            prelude=read.integer("n_layers_in_prelude"),
            group=read.integer("n_layers_in_recurrent_block"),
            repeats=read.integer("mean_recurrence"),
            coda=read.integer("n_layers_in_coda"),
        ),
        state=State(start=start_of(read), injection=_injection(read), output="final_norm"),
        conditioning=_conditioning(read),
        attention=_attention(read, d_model, "n_heads" if is_released else "num_attention_heads"),
        feed_forward=_feed_forward(read),
        position=position_of(read),
        norm=BLOCKS[read.word("block_class_name", BLOCKS)],
        norm_kind=kind,  # type: ignore[arg-type]
        norm_epsilon=read.number("norm_eps"),
        final_norm=True,
        head_bias=False,
        logit_scale=(on_logits / d_model) ** 0.5 or 1.0,
        tie_embeddings=read.boolean("tie_embeddings"),
        embedding_scale=scale,  # type: ignore[arg-type]
    )


def refuse_unsupported(read: RawOptions) -> None:
    """Raise for an option that would make another model than can be built."""
    for name in ("center_attention", "debias_attention"):
        read.require(name, read.boolean(name, False), False, default=False)
    for name, plain in (("intermediate_noise_injection", 0), ("mup_model_scaling_factor", 1)):
        read.require(name, read.number(name, plain), plain, default=plain)
    for name in ("clip_qkv", "randomize_positions_from"):
        read.require(name, read.number_or_none(name), None, default=None)


def position_of(read: RawOptions) -> PositionOptions:
    """Return the rotations, whose options the training code has in a section of its own."""
    own = read
    if read.raw("rope_settings", None) is not None:
        own = read.section("rope_settings")
        if not own.boolean("use_rope", True):
            return NoPosition()
    own.require("rope_condense_ratio", own.number("rope_condense_ratio", 1), 1, default=1)
    return Rotary(pairs=True, base=own.number("rope_base", 50000.0), fraction=1.0)


def start_of(read: RawOptions) -> Start:
    """Return what the first repeat begins from."""
    if read.word("state_init", (*STARTS, "zero"), "like-init") == "zero":
        return ZeroStart()
    return NoiseStart(shape=STARTS[read.raw("state_init", "like-init")])  # type: ignore[arg-type]


def _injection(read: RawOptions) -> Injection:
    bias = read.boolean("bias", False)
    kind = read.word("injection_type", ("add", "gate", "linear", "ffn"))
    if kind == "ffn":
        layer = _feed_forward(read)
        return FeedForwardInjection(
            hidden_size=layer.width,
            activation=layer.activation,  # type: ignore[attr-defined]
            gated=isinstance(layer, GatedFeedForward),
            bias=bias,
        )
    return {"add": AddInjection(), "gate": GateInjection()}.get(kind) or LinearInjection(bias=bias)


def has_layer_bias(read: RawOptions) -> bool:
    """Return whether layers have biases: in the released code the adapter alone can have one."""
    return read.raw("n_heads", None) is None and read.boolean("bias", False)


def _conditioning(read: RawOptions) -> Conditioning:
    offset = read.boolean("randomize_embed_step", False)
    read.require("randomize_embed_step", offset, False, default=False)
    return Network() if read.boolean("embed_step", False) else NoConditioning()


def _attention(read: RawOptions, d_model: int, heads: str) -> AttentionOptions:
    num_heads = read.integer(heads, least=1)
    num_key_heads = read.integer_or_none("num_key_value_heads") or num_heads
    is_biased = read.boolean("qk_bias")
    has_bias = has_layer_bias(read)
    if is_biased and (has_bias or num_key_heads != num_heads):
        said = "is supported with neither bias nor num_key_value_heads"
        raise read.error("qk_bias", True, said)
    return DenseAttention(
        num_heads=num_heads,
        num_key_heads=num_key_heads,
        head_size=d_model // num_heads,
        bias="query_key" if is_biased else "all" if has_bias else "none",
        qk_norm="after" if read.boolean("qk_norm", False) else "none",
    )


def _feed_forward(read: RawOptions) -> FeedForwardOptions:
    kind = read.word("mlp_class_name", ("GatedMLP", "BaseMLP"))
    # Left out, or none, the training code takes four times the width.
    hidden_size = read.integer_or_none("intermediate_size") or 4 * read.integer("n_embd")
    bias = has_layer_bias(read)
    activation: Any = ACTIVATIONS[read.word("nonlin_name", ACTIVATIONS)]
    if kind == "GatedMLP":
        return GatedFeedForward(hidden_size=hidden_size, activation=activation, bias=bias)
    return DenseFeedForward(hidden_size=hidden_size, activation=activation, bias=bias)


# --- tensors ----------------------------------------------------------------------------


def huginn_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    maps = [
        rename("transformer.wte.weight", "embedding.weight"),
        *norm_maps("transformer.ln_f", "decoder.final_norm", config),
        *_injection_maps(config),
    ]
    if not config.tie_embeddings:
        maps.append(rename("lm_head.weight", "head.weight"))
    if isinstance(config.conditioning, Network):
        ours = "decoder.controllers.conditioning"
        for theirs, part in (("0", "up"), ("2", "down")):
            maps.append(rename(f"step_embedding.mlp.{theirs}.weight", f"{ours}.{part}"))
            maps.append(rename(f"step_embedding.mlp.{theirs}.bias", f"{ours}.{part}_bias"))
    depth, index = config.depth, 0
    parts = {"prelude": depth.prelude, "core_block": depth.group, "coda": depth.coda}
    for part, count in parts.items():
        for number in range(count):
            maps += _layer_maps(f"transformer.{part}.{number}", f"decoder.layers.{index}", config)
            index += 1
    return maps


def _injection_maps(config: ModelConfig) -> list[TensorMap]:
    theirs, ours = "transformer.adapter", "decoder.controllers.injection.rule"
    injection = config.state.injection
    if isinstance(injection, LinearInjection):
        parts = ("weight", "bias") if injection.bias else ("weight",)
        return [rename(f"{theirs}.{part}", f"{ours}.{part}") for part in parts]
    if isinstance(injection, FeedForwardInjection):
        names = {"fc.weight": "up", "proj.weight": "down"}
        if injection.bias:
            names |= {"fc.bias": "up_bias", "proj.bias": "down_bias"}
        return [rename(f"{theirs}.{a}", f"{ours}.{b}") for a, b in names.items()]
    return []


def norm_maps(theirs: str, ours: str, config: ModelConfig) -> list[TensorMap]:
    """Return the maps of a norm, which has a bias if it is a layer norm."""
    parts = ("weight", "bias") if config.norm_kind == "layer" else ("weight",)
    return [rename(f"{theirs}.{part}", f"{ours}.{part}") for part in parts]


def feed_forward_maps(theirs: str, ours: str, options: FeedForwardOptions) -> list[TensorMap]:
    """Return the maps of a feed-forward; of a gated one the first half of ``fc`` is the gate."""
    assert isinstance(options, DenseFeedForward | GatedFeedForward)
    maps = []
    for part in ("weight", "bias") if options.bias else ("weight",):
        if isinstance(options, GatedFeedForward):
            names = tuple(f"{ours}.{name}.{part}" for name in ("gate", "up"))
            maps.append(TensorMap(f"{theirs}.fc.{part}", names, _rows([options.hidden_size] * 2)))
        else:
            maps.append(rename(f"{theirs}.fc.{part}", f"{ours}.up.{part}"))
        maps.append(rename(f"{theirs}.proj.{part}", f"{ours}.down.{part}"))
    return maps


def _layer_maps(theirs: str, ours: str, config: ModelConfig) -> list[TensorMap]:
    """Return the maps of a layer, whose norms the code numbers in the order of their use."""
    attention = config.attention
    assert isinstance(attention, DenseAttention)
    names = ["attention_norm", "feed_forward_norm"]
    if config.norm in ("sandwich", "branch"):
        sublayers = ("attention", "feed_forward")
        names = [f"{sublayer}_{second}norm" for sublayer in sublayers for second in ("", "second_")]
    maps = []
    for number, name in enumerate(names, start=1):
        maps += norm_maps(f"{theirs}.norm_{number}", f"{ours}.{name}", config)
    weights = ("weight", "bias") if attention.bias == "all" else ("weight",)
    rows = [attention.width, *[attention.num_key_heads * attention.head_size] * 2]
    for part in weights:
        names = [f"{ours}.attention.{name}.{part}" for name in ("query", "key", "value")]
        maps.append(TensorMap(f"{theirs}.attn.Wqkv.{part}", tuple(names), _rows(rows)))
        maps.append(rename(f"{theirs}.attn.proj.{part}", f"{ours}.attention.output.{part}"))
    if attention.bias == "query_key":
        names = [f"{ours}.attention.{name}.bias" for name in ("query", "key")]
        maps.append(TensorMap(f"{theirs}.attn.qk_bias", tuple(names), two_biases))
    maps += feed_forward_maps(f"{theirs}.mlp", f"{ours}.feed_forward", config.feed_forward)
    return maps


def _rows(counts: list[int]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return the map that parts a tensor's rows."""
    return lambda tensor: tensor.split(counts)


def two_biases(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the biases (H·d) of queries and keys, of a tensor (2, 1, H, d)."""
    return tuple(tensor.flatten(1))
