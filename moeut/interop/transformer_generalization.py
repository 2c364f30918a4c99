"""Import encoder-decoders of "The Devil is in the Detail" (arXiv 2108.12284).

The code is RobertCsordas/transformer_generalization at 38f2734.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moeut.blocks.attention import DenseAttention
from moeut.blocks.feed_forward import DenseFeedForward
from moeut.blocks.positions import PositionOptions, Relative, Sinusoidal
from moeut.config import ModelConfig
from moeut.interop.mapping import (
    RawOptions,
    TensorMap,
    key_value_by_head,
    load,
    matrix_shape,
    rename,
    rename_layer,
)
from moeut.models import EncoderDecoder
from moeut.recurrence.schedule import Depth
from moeut.recurrence.stack_config import StackConfig

# Variant: initial embeddings, factor on embeddings, position.
_SCALED = ("kaiming", "none", Sinusoidal(scale="inverse_sqrt"))
_OPENNMT = ("glorot", "sqrt_d_model", Sinusoidal())
_NO_SCALE = ("normal", "none", Sinusoidal())
_RELATIVE = ("glorot", "none", Relative())
_VARIANTS: dict[str, tuple[str, str, PositionOptions]] = {
    "scaledinit": _SCALED,
    "opennmt": _OPENNMT,
    "noscale": _NO_SCALE,
    "universal_scaledinit": _SCALED,
    "universal_opennmt": _OPENNMT,
    "universal_noscale": _NO_SCALE,
    "relative": _RELATIVE,
    "relative_universal": _RELATIVE,
}

# Tables that the code keeps in its state dict.
_IGNORE = ("int_seq", "pos.pe", "*.pos_encoding")


def from_transformer_generalization(
    options: dict[str, Any], state_dict: dict[str, Tensor]
) -> EncoderDecoder:
    """Return the encoder-decoder that the code makes of ``options`` with ``state_dict``.

    ``options`` are that code's command-line arguments by their dotted names; the vocabularies are
    as large as the embeddings. Tokens keep their numbers: with n input and m output words, the
    encoder reads end = n and start = n + 1, the decoder has m for both.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    config = transformer_generalization_config(
        options,
        source_vocabulary_size=matrix_shape(state_dict, "input_embedding.weight")[0],
        vocabulary_size=matrix_shape(state_dict, "output_embedding.weight")[0],
    )
    maps = transformer_generalization_maps(
        config, universal="universal" in options["transformer.variant"]
    )
    return load(EncoderDecoder, config, maps, state_dict, ignore=_IGNORE)


def transformer_generalization_config(
    options: dict[str, Any], *, source_vocabulary_size: int, vocabulary_size: int
) -> ModelConfig:
    """Return the model config of the code's options.

    The code reads an option ``dropout`` and passes it to no layer: dropout is 0.1 everywhere, and
    that is what the config says.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="transformer_generalization")
    variant = read.word("transformer.variant", _VARIANTS)
    initialization, embedding_scale, position = _VARIANTS[variant]
    d_model = read.integer("state_size", 128)
    num_heads = read.integer("transformer.n_heads", 4, least=1)
    encoder_layers = read.integer("transformer.encoder_n_layers", 3)
    decoder_layers = read.integer_or_none("transformer.decoder_n_layers", 0) or encoder_layers
    hidden_size = int(read.number("transformer.ff_multiplier", 2.0) * d_model)

    shared = "universal" in variant
    return ModelConfig(
        form="encoder_decoder",
        d_model=d_model,
        vocabulary_size=vocabulary_size,
        source_vocabulary_size=source_vocabulary_size,
        depth=distinct_or_shared(decoder_layers, shared=shared),
        encoder_depth=distinct_or_shared(encoder_layers, shared=shared),
        attention=DenseAttention(num_heads=num_heads, head_size=d_model // num_heads),
        feed_forward=DenseFeedForward(hidden_size=hidden_size),
        position=position,
        norm="post",
        dropout=0.1,
        tie_embeddings=read.boolean("transformer.tied_embedding", True),
        embedding_scale=embedding_scale,  # type: ignore[arg-type]
        initialization=initialization,  # type: ignore[arg-type]
    )


def distinct_or_shared(num_layers: int, *, shared: bool) -> Depth:
    """Return the depth of ``num_layers`` applied layers: one repeated, or all distinct."""
    group, repeats = (1, num_layers) if shared else (num_layers, 1)
    return Depth(group=group, repeats=repeats)


def transformer_generalization_maps(config: ModelConfig, *, universal: bool) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    maps = [
        rename("input_embedding.weight", "source_embedding.weight"),
        rename("output_embedding.weight", "embedding.weight"),
        rename("output_map.bias", "head.bias"),
    ]
    if not config.tie_embeddings:
        maps.append(rename("output_map.weight", "head.weight"))
    for name, stack in config.stacks.items():
        is_decoder = name == "decoder"
        for theirs, ours in layer_names(f"trafo.{name}", name, stack, universal=universal):
            maps += attention_maps(f"{theirs}.self_attn", f"{ours}.attention", stack)
            maps += rename_layer(f"{theirs}.norm1", f"{ours}.attention_norm")
            if is_decoder:
                # Positions are relative in self-attention alone.
                maps += dense_attention_maps(
                    f"{theirs}.multihead_attn", f"{ours}.cross_attention", stack
                )
                maps += rename_layer(f"{theirs}.norm2", f"{ours}.cross_attention_norm")
            last_norm = "norm3" if is_decoder else "norm2"
            maps += rename_layer(f"{theirs}.{last_norm}", f"{ours}.feed_forward_norm")
            maps += feed_forward_maps(theirs, ours)
    return maps


def layer_names(
    theirs: str, ours: str, stack: StackConfig, *, universal: bool
) -> list[tuple[str, str]]:
    """Return the names of the distinct layers: the one of a universal model has no number."""
    if universal:
        return [(f"{theirs}.layer", f"{ours}.layers.0")]
    return [(f"{theirs}.layers.{i}", f"{ours}.layers.{i}") for i in range(stack.depth.group)]


def dense_attention_maps(theirs: str, ours: str, stack: StackConfig) -> list[TensorMap]:
    """Return the maps of the four projections of an attention."""
    return [
        rename(f"{theirs}.data_to_q.weight", f"{ours}.query.weight"),
        key_value_by_head(
            f"{theirs}.data_to_kv.weight",
            f"{ours}.key.weight",
            f"{ours}.value.weight",
            num_heads=stack.attention.num_heads,
            head_size=stack.attention.head_size,
        ),
        rename(f"{theirs}.multi_head_merge.weight", f"{ours}.output.weight"),
    ]


def attention_maps(theirs: str, ours: str, stack: StackConfig) -> list[TensorMap]:
    """Return the maps of a self-attention, relative positions included."""
    maps = dense_attention_maps(theirs, ours, stack)
    if isinstance(stack.position, Relative):
        maps += [
            rename(f"{theirs}.global_content_bias", f"{ours}.relative.content_bias"),
            rename(f"{theirs}.global_pos_bias", f"{ours}.relative.position_bias"),
            rename(f"{theirs}.pos_to_pq.weight", f"{ours}.relative.projection.weight"),
        ]
    return maps


def feed_forward_maps(theirs: str, ours: str) -> list[TensorMap]:
    """Return the maps of a dense feed-forward."""
    return [
        rename(f"{theirs}.{a}.{part}", f"{ours}.feed_forward.{b}.{part}")
        for a, b in (("linear1", "up"), ("linear2", "down"))
        for part in ("weight", "bias")
    ]
