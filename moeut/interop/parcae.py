"""Import the looped language models of sandyresearch/parcae (at dee8363), and their checkpoints."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moeut.blocks.attention import AttentionOptions, DenseAttention
from moeut.blocks.feed_forward import DenseFeedForward, FeedForwardOptions, GatedFeedForward
from moeut.blocks.value_embeddings import ValueEmbeddings
from moeut.config import ModelConfig
from moeut.interop.huginn import (
    ACTIVATIONS,
    INITIALIZATIONS,
    NORMS,
    feed_forward_maps,
    norm_maps,
    position_of,
    refuse_unsupported,
    start_of,
    two_biases,
)
from moeut.interop.mapping import RawOptions, TensorMap, load, matrix_shape, rename
from moeut.models import DecoderLM
from moeut.recurrence.injection import (
    AddInjection,
    DiagonalInjection,
    Injection,
    LinearInjection,
)
from moeut.recurrence.schedule import Depth
from moeut.recurrence.state import State

_INJECTION = ("diagonal", "linear", "add")


def from_parcae(options: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the model that the code makes of ``options`` with ``state_dict``.

    The vocabulary is as large as the embedding has rows. Layers have value embeddings if the state
    dict has both a table and a gate for them: the code makes the two by different rules, and uses
    neither alone.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    config = parcae_config(options, state_dict)
    ignore = ["freqs_cis", *(("lm_head.weight",) if config.tie_embeddings else ())]
    for layer, name in enumerate(layer_names(config)):
        if layer not in config.value_embeddings.list:
            ignore += [f"value_embeds.{layer}.weight", f"{name}.attn.ve_gate.weight"]
    return load(DecoderLM, config, parcae_maps(config), state_dict, ignore=tuple(ignore))


def parcae_config(options: dict[str, Any], state_dict: dict[str, Tensor]) -> ModelConfig:
    """Return the model config of the code's options, and of the shapes of its tensors.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="Parcae")
    d_model = read.integer("n_embd")
    core = _core_width(read, d_model)
    read.word("block_class_name", ("TransformerPreNormBlock",), "TransformerPreNormBlock")
    refuse_unsupported(read)
    scale, on_logits = INITIALIZATIONS[read.word("init_strategy", INITIALIZATIONS, "scaled")]
    depth = Depth(
        prelude=read.integer("n_layers_in_prelude"),
        group=read.integer("n_layers_in_recurrent_block"),
        repeats=read.integer("mean_recurrence"),
        coda=read.integer("n_layers_in_coda"),
    )
    width = read.integer_or_none("intermediate_size") or 4 * d_model
    inner = read.integer("recurrent_intermediation_embedding_dimension", width)
    kind = NORMS[read.word("norm_class_name", NORMS, "LayerNorm")]
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=matrix_shape(state_dict, "transformer.wte.weight")[0],
        depth=depth,
        state=State(
            start=start_of(read),
            injection=_injection(read),
            norm_input=read.boolean("prelude_norm", False),
            output="linear",
            output_bias=read.boolean("bias", False),
        ),
        attention=_attention(read, d_model),
        feed_forward=_feed_forward(read, inner),
        core_width=core,
        outer_width=None if width == inner else width,
        value_embeddings=_value_embeddings(depth, state_dict),
        position=position_of(read),
        norm="pre",
        norm_kind=kind,  # type: ignore[arg-type]
        norm_epsilon=read.number("norm_eps", 1e-5),
        head_bias=False,
        logit_scale=(on_logits / d_model) ** 0.5 or 1.0,
        logit_cap=read.number_or_none("logit_softcap"),
        tie_embeddings=read.boolean("tie_embeddings", False),
        embedding_scale=scale,  # type: ignore[arg-type]
    )


def _core_width(read: RawOptions, d_model: int) -> int:
    """Return the width of the repeated layers."""
    num_heads = read.integer("num_attention_heads", least=1)
    core = read.integer_or_none("recurrent_embedding_dimension") or d_model
    heads = read.integer_or_none("recurrent_num_attention_heads") or num_heads
    if core * num_heads != heads * d_model:
        said = "heads of one size are supported, since the code has one table of rotations"
        raise read.error("recurrent_num_attention_heads", heads, said)
    return core


def _injection(read: RawOptions) -> Injection:
    kind = read.word("injection_type", _INJECTION, "diagonal")
    if kind == "linear":
        return LinearInjection(bias=read.boolean("bias", False))
    return AddInjection() if kind == "add" else DiagonalInjection()


def _attention(read: RawOptions, d_model: int) -> AttentionOptions:
    num_heads = read.integer("num_attention_heads", least=1)
    # The repeated layers always have as many key heads as heads; so do the others, or there is no
    # one option for both.
    key_heads = read.integer_or_none("num_key_value_heads") or num_heads
    read.require("num_key_value_heads", key_heads, num_heads, default=num_heads)
    is_biased, has_bias = read.boolean("qk_bias", False), read.boolean("bias", False)
    if is_biased and has_bias:
        raise read.error("qk_bias", True, "is not supported with bias")
    return DenseAttention(
        num_heads=num_heads,
        head_size=d_model // num_heads,
        bias="query_key" if is_biased else "all" if has_bias else "none",
        qk_norm="after" if read.boolean("qk_norm", False) else "none",
    )


def _feed_forward(read: RawOptions, hidden_size: int) -> FeedForwardOptions:
    activation: Any = ACTIVATIONS[read.word("nonlin_name", ACTIVATIONS, "GELU")]
    bias = read.boolean("bias", False)
    if read.word("mlp_class_name", ("BaseMLP", "GatedMLP"), "BaseMLP") == "GatedMLP":
        return GatedFeedForward(hidden_size=hidden_size, activation=activation, bias=bias)
    return DenseFeedForward(hidden_size=hidden_size, activation=activation, bias=bias)


def _value_embeddings(depth: Depth, state_dict: dict[str, Tensor]) -> ValueEmbeddings:
    names = _layer_names(depth)
    layers = tuple(
        layer
        for layer, name in enumerate(names)
        if f"value_embeds.{layer}.weight" in state_dict
        and f"{name}.attn.ve_gate.weight" in state_dict
    )
    if not layers:
        return ValueEmbeddings()
    _, channels = matrix_shape(state_dict, f"{names[layers[0]]}.attn.ve_gate.weight")
    return ValueEmbeddings(layers="listed", list=layers, channels=channels)


# --- tensors ----------------------------------------------------------------------------


def layer_names(config: ModelConfig) -> list[str]:
    """Return what the code calls each layer, in our order."""
    return _layer_names(config.depth)


def _layer_names(depth: Depth) -> list[str]:
    parts = {"prelude": depth.prelude, "core_block": depth.group, "coda": depth.coda}
    return [
        f"transformer.{part}.{index}" for part, count in parts.items() for index in range(count)
    ]


def _parts(theirs: str, ours: str, *, bias: bool) -> list[TensorMap]:
    parts = ("weight", "bias") if bias else ("weight",)
    return [rename(f"{theirs}.{part}", f"{ours}.{part}") for part in parts]


def parcae_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    rule, state = "decoder.controllers.injection.rule", config.state
    maps = [
        rename("transformer.wte.weight", "embedding.weight"),
        *_parts("transformer.C", "decoder.output", bias=state.output_bias),
        *norm_maps("transformer.ln_f", "decoder.final_norm", config),
    ]
    if state.norm_input:
        maps += norm_maps("transformer.ln_prelude", "decoder.state_norm", config)
    if isinstance(state.injection, DiagonalInjection):
        names = {"A_log": "rate", "dt_bias": "step", "B": "weight"}
        maps += [rename(f"transformer.adapter.{a}", f"{rule}.{b}") for a, b in names.items()]
    elif isinstance(state.injection, LinearInjection):
        maps += _parts("transformer.adapter.adapter", rule, bias=state.injection.bias)
    if not config.tie_embeddings:
        maps.append(rename("lm_head.weight", "head.weight"))
    for layer, theirs in enumerate(layer_names(config)):
        ours = f"decoder.layers.{layer}"
        maps += norm_maps(f"{theirs}.norm_1", f"{ours}.attention_norm", config)
        maps += norm_maps(f"{theirs}.norm_2", f"{ours}.feed_forward_norm", config)
        names = {"c_q": "query", "c_k": "key", "c_v": "value", "c_proj": "output"}
        biases = config.attention.bias
        for a, b in names.items():
            maps += _parts(f"{theirs}.attn.{a}", f"{ours}.attention.{b}", bias=biases == "all")
        if biases == "query_key":
            both = (f"{ours}.attention.query.bias", f"{ours}.attention.key.bias")
            maps.append(TensorMap(f"{theirs}.attn.qk_bias", both, two_biases))
        options = config.stacks["decoder"].of_layer(layer).feed_forward
        maps += feed_forward_maps(f"{theirs}.mlp", f"{ours}.feed_forward", options)
    for layer in config.value_embeddings.list:
        ours = f"decoder.value_embeddings.{layer}"
        gate = f"{layer_names(config)[layer]}.attn.ve_gate.weight"
        maps.append(rename(f"value_embeds.{layer}.weight", f"{ours}.weight"))
        maps.append(rename(gate, f"{ours}.gate"))
    return maps
