"""Import encoder classifiers of the Neural Data Router's code (RobertCsordas/ndr at da20530).

These are the Neural Data Router (``ndr_geometric``, and ``ndr_residual`` without geometric
attention), its baselines, and these with adaptive computation time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from moeut.blocks.attention import AttentionOptions, DenseAttention, GeometricAttention
from moeut.blocks.feed_forward import DenseFeedForward
from moeut.blocks.positions import NoPosition, PositionOptions, Relative, Sinusoidal
from moeut.blocks.updates import CopyGate, Residual, UpdateOptions
from moeut.config import ModelConfig
from moeut.interop.mapping import (
    RawOptions,
    TensorMap,
    load,
    matrix_shape,
    rename,
    rename_layer,
    reshape,
)
from moeut.interop.transformer_generalization import (
    attention_maps,
    dense_attention_maps,
    distinct_or_shared,
    feed_forward_maps,
    layer_names,
)
from moeut.models import EncoderClassifier
from moeut.recurrence.controller import ControllerOptions, NoHalting
from moeut.recurrence.halting import AdaptiveComputationTime
from moeut.recurrence.stack_config import StackConfig


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """What the word in ``transformer.variant`` stands for."""

    position: Literal["sinusoidal", "relative", "geometric"]
    shared: bool = True
    """One layer repeated."""
    proposal: Literal["norm", "tanh"] | None = None
    """What the copy gate lets in; None: there is no gate."""
    halts: bool = False
    """Adaptive computation time."""
    embedding: str = "pytorch"
    """Initial embeddings, where the option ``embedding_init`` is ``auto``."""


_VARIANTS = {
    "universal": _Variant(position="sinusoidal"),
    "relative": _Variant(position="relative", shared=False, embedding="xavier"),
    "relative_universal": _Variant(position="relative", embedding="xavier"),
    "ndr_residual": _Variant(position="relative", proposal="tanh"),
    "geometric_transformer": _Variant(position="geometric"),
    "ndr_geometric": _Variant(position="geometric", proposal="norm"),
    "act_universal": _Variant(position="sinusoidal", halts=True),
    "act_relative_universal": _Variant(position="relative", halts=True, embedding="xavier"),
    "act_relative_universal_geometric": _Variant(
        position="geometric", halts=True, embedding="xavier"
    ),
}

# Tables, and tensors that the code makes and does not use.
_IGNORE = ("int_seq", "pos.pe", "*.pos_encoding")
_UNUSED = {
    "relative": ("*.s_bias", "*.n1.weight", "*.n1.bias"),
    "geometric": ("*.pos_to_pq.weight",),
    "sinusoidal": (),
}


def from_ndr(options: dict[str, Any], state_dict: dict[str, Tensor]) -> EncoderClassifier:
    """Return the encoder classifier that the code makes of ``options`` with ``state_dict``.

    ``options`` are that code's command-line arguments by their dotted names; vocabulary and classes
    are as many as the tensors have rows. Tokens keep their numbers: with n words, the encoder reads
    end = n and start = n + 1.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    config = ndr_config(
        options,
        vocabulary_size=matrix_shape(state_dict, "embedding.weight")[0],
        num_classes=matrix_shape(state_dict, "output_map.weight")[0],
    )
    maps = ndr_maps(config, variant=options["transformer.variant"])
    unused = _UNUSED[_VARIANTS[options["transformer.variant"]].position]
    return load(EncoderClassifier, config, maps, state_dict, ignore=_IGNORE + unused)


def ndr_config(options: dict[str, Any], *, vocabulary_size: int, num_classes: int) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="ndr")
    variant = _VARIANTS[read.word("transformer.variant", _VARIANTS)]
    autoregressive = read.boolean("transformer_classifier.autoregressive", False)
    read.require("transformer_classifier.autoregressive", autoregressive, False, default=False)
    read.word("trafo_classifier.out_mode", ("linear",), "linear")
    for name in ("sos", "eos"):
        read.require(name, read.boolean(name, True), True, default=True)
    test_layers = read.integer_or_none("n_test_layers")
    read.require("n_test_layers", test_layers, None, default=None)

    d_model = read.integer("state_size", 128)
    embeddings = {"pytorch": "normal", "xavier": "glorot", "kaiming": "kaiming"}
    chosen = read.word("embedding_init", ("auto", *embeddings), "auto")
    # The gated layer with tanh is four times as wide as the model, whatever the option says.
    wide = variant.proposal == "tanh"
    multiplier = 4.0 if wide else read.number("transformer.ff_multiplier", 2.0)
    return ModelConfig(
        form="encoder_classifier",
        d_model=d_model,
        vocabulary_size=vocabulary_size,
        num_classes=num_classes,
        depth=distinct_or_shared(
            read.integer("transformer.encoder_n_layers", 3), shared=variant.shared
        ),
        halting=_halting(read) if variant.halts else NoHalting(),
        attention=_attention(read, variant, d_model),
        feed_forward=DenseFeedForward(hidden_size=int(multiplier * d_model)),
        position=_position(read, variant),
        norm="post",
        update=_update(read, variant),
        dropout=read.number("dropout", 0.0),
        pooling=read.word(  # type: ignore[arg-type]
            "transformer_classifier.result_column", ("first", "last"), "first"
        ),
        initialization=embeddings[  # type: ignore[arg-type]
            variant.embedding if chosen == "auto" else chosen
        ],
    )


def _attention(read: RawOptions, variant: _Variant, d_model: int) -> AttentionOptions:
    num_heads = read.integer("transformer.n_heads", 4, least=1)
    head_size = d_model // num_heads
    dropout = read.number("transformer.attention_dropout", 0.0)
    if variant.position != "geometric":
        return DenseAttention(num_heads=num_heads, head_size=head_size, dropout=dropout)
    # Two options are for the gated layer alone; the others normalise and have the bias.
    is_gated = variant.proposal is not None
    normalise = read.boolean("trafo_classifier.norm_att", True) if is_gated else True
    content_bias = read.boolean("ndr.global_content_bias", True) if is_gated else True
    return GeometricAttention(
        num_heads=num_heads,
        head_size=head_size,
        dropout=dropout,
        normalise=normalise,
        content_bias=content_bias,
    )


def _position(read: RawOptions, variant: _Variant) -> PositionOptions:
    if variant.position == "sinusoidal":
        return Sinusoidal()
    if variant.position == "geometric":
        return NoPosition()
    is_gated = variant.proposal is not None and read.boolean("ndr.abs_gate", True)
    return Relative(learned_scale=True, absolute_gate=is_gated)


def _update(read: RawOptions, variant: _Variant) -> UpdateOptions:
    if variant.proposal is None:
        return Residual()
    multiple = read.integer("ndr.gate_size_multiplier", 1)
    return CopyGate(
        proposal=variant.proposal,
        gate="scalar" if read.boolean("ndr.scalar_gate", False) else "vector",
        # The layer with tanh does not read this option.
        hidden_multiple=multiple if variant.proposal == "norm" else 1,
        gate_dropout=read.number("ndr.drop_gate", 0.0),
    )


def _halting(read: RawOptions) -> ControllerOptions:
    """Return adaptive computation time as the code has it, in every respect."""
    running = read.boolean("act.ut_variant", False)
    return AdaptiveComputationTime(
        threshold=0.99,
        loss_weight=read.number("act.loss_weight", 0.001),
        halted="update",
        average="running" if running else "sum",
        loss_over="all",
        accumulator="float32",
    )


def ndr_maps(config: ModelConfig, *, variant: str) -> list[TensorMap]:
    """Return where each tensor of the state dict of the code's ``variant`` belongs."""
    stack, is_shared = config.stacks["encoder"], _VARIANTS[variant].shared
    is_gated = isinstance(stack.update, CopyGate)
    maps = [
        rename("embedding.weight", "embedding.weight"),
        rename("output_map.weight", "head.weight"),
        rename("output_map.bias", "head.bias"),
    ]
    if _VARIANTS[variant].halts:
        halting = "encoder.controllers.halting"
        maps += [rename(f"trafo.p_map.{part}", f"{halting}.{part}") for part in ("weight", "bias")]
    for theirs, ours in layer_names("trafo", "encoder", stack, universal=is_shared):
        attention = f"{theirs}.att" if is_gated else f"{theirs}.self_attn"
        maps += _attention_maps(attention, f"{ours}.attention", stack)
        if is_gated:
            maps += _gated_maps(theirs, ours, stack)
        else:
            maps += rename_layer(f"{theirs}.norm1", f"{ours}.attention_norm")
            maps += rename_layer(f"{theirs}.norm2", f"{ours}.feed_forward_norm")
            maps += feed_forward_maps(theirs, ours)
    return maps


def _attention_maps(theirs: str, ours: str, stack: StackConfig) -> list[TensorMap]:
    """Return the maps of an attention, of which theirs keeps every scalar as (1,)."""
    if not isinstance(stack.attention, GeometricAttention):
        maps = attention_maps(theirs, ours, stack)
        if isinstance(stack.position, Relative):
            maps.append(reshape(f"{theirs}.scale", f"{ours}.relative.scale", ()))
            if stack.position.absolute_gate:
                maps += rename_layer(f"{theirs}.data_to_absgate", f"{ours}.relative.gate")
        return maps
    scalars = {"scale": "scale", "scale_pos": "direction_scale", "s_bias": "bias"}
    maps = dense_attention_maps(theirs, ours, stack)
    maps += rename_layer(f"{theirs}.data_to_qp", f"{ours}.direction")
    maps += [reshape(f"{theirs}.{a}", f"{ours}.{b}", ()) for a, b in scalars.items()]
    if stack.attention.content_bias:
        maps.append(rename(f"{theirs}.global_content_bias", f"{ours}.content_bias"))
    return maps


def _gated_maps(theirs: str, ours: str, stack: StackConfig) -> list[TensorMap]:
    """Return the maps of norms, feed-forward and gate of a layer with a copy gate."""
    assert isinstance(stack.update, CopyGate)
    names = {
        "nmerge": "attention_norm",
        "p1": "feed_forward.up",
        "p2": "feed_forward.down",
        "g1": "update.up",
        "g2": "update.down",
    }
    if stack.update.proposal == "norm":
        names["no"] = "update.norm"
    maps = [rename_layer(f"{theirs}.{a}", f"{ours}.{b}") for a, b in names.items()]
    return [tensor_map for pair in maps for tensor_map in pair]
