"""Import models of the paper's training code (RobertCsordas/moeut_training_code at a0f771a)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from moeut.blocks.attention import AttentionOptions, DenseAttention, SwitchHead
from moeut.blocks.feed_forward import DenseFeedForward, FeedForwardOptions, SigmaMoE
from moeut.blocks.positions import NoPosition, PositionOptions, Rotary
from moeut.config import ModelConfig
from moeut.interop.mapping import (
    RawOptions,
    TensorMap,
    head_blocks,
    key_value_halves,
    load,
    matrix_shape,
    rename,
    rename_layer,
)
from moeut.interop.sparse_universal import VARIANT as SPARSE_UNIVERSAL
from moeut.interop.sparse_universal import sparse_universal_config, sparse_universal_maps
from moeut.models import DecoderLM
from moeut.recurrence.schedule import Depth, Order
from moeut.recurrence.stick_breaking import StickBreaking

_DENSE_VARIANTS = ("rope", "preln_rope", "rope_universal", "preln_rope_universal")
_EXPERT_VARIANTS = ("moe", "preln_moe", "moe_universal", "preln_moe_universal")

# Counters that the experts keep in their state dict.
_IGNORE = ("*.pkm.iter", "*.pkm.kv_sel_counts_100")


def from_training_code(options: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the model that the training code makes of ``options`` with ``state_dict``.

    ``options`` are that code's command-line arguments by their dotted names, as its checkpoints
    hold them: values may be strings (``"14"``, ``"none"``). What is left out has that code's
    default; options that do not concern the model are not looked at. The vocabulary is as large as
    the embedding. The model has the dtype of ``state_dict``.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    vocabulary_size, _ = matrix_shape(state_dict, "embedding.weight")
    config = training_code_config(options, vocabulary_size=vocabulary_size)
    return load(DecoderLM, config, training_code_maps(config), state_dict, ignore=_IGNORE)


def training_code_config(options: dict[str, Any], *, vocabulary_size: int) -> ModelConfig:
    """Return the model config of the training code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="the MoEUT training code")
    variants = (*_DENSE_VARIANTS, *_EXPERT_VARIANTS, SPARSE_UNIVERSAL)
    variant = read.word("transformer.variant", variants)
    has_experts = variant in _EXPERT_VARIANTS
    is_pre_norm = "preln" in variant
    _refuse_unsupported(read, has_experts=has_experts)

    d_model = read.integer("state_size", 128)
    num_layers = read.integer("transformer.encoder_n_layers", 3)
    if "universal" in variant:
        group_size = read.integer("transformer.universal.group_size", 1)
    else:
        group_size = num_layers
    group_type = read.word("transformer.universal.group_type", ("abab", "aabb"), "abab")
    depth = _depth(num_layers, group_size, order="cycle" if group_type == "abab" else "sequence")
    if variant == SPARSE_UNIVERSAL:
        return sparse_universal_config(read, depth=depth, vocabulary_size=vocabulary_size)
    norm = "pre" if is_pre_norm else "post"
    if has_experts and read.boolean("moe.nonorm", False):
        if not is_pre_norm:
            raise read.error("moe.nonorm", True, "only supported with a preln variant")
        norm = "peri"

    head_size = read.integer_or_none("transformer.head_projection_size")
    num_heads = read.integer("transformer.n_heads", 4, least=1)
    head_size = head_size or d_model // num_heads
    fraction = read.number("rope.rotate_fraction", 0.5)
    position: PositionOptions = NoPosition()
    if fraction > 0.0:
        position = Rotary(fraction=fraction, base=read.number("rope.base", 10000.0))
    if has_experts:
        attention, feed_forward = _experts(read, num_heads=num_heads, head_size=head_size)
    else:
        attention = DenseAttention(num_heads=num_heads, head_size=head_size)
        multiplier = read.number("transformer.ff_multiplier", 2.0)
        feed_forward = DenseFeedForward(hidden_size=int(d_model * multiplier))
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=vocabulary_size,
        depth=depth,
        attention=attention,
        feed_forward=feed_forward,
        position=position,
        norm=norm,  # type: ignore[arg-type]
        norm_input=read.boolean("lm.trafo.norm_input", False),
        final_norm=is_pre_norm or read.boolean("lm.trafo.force_out_norm", False),
        embedding_scale=_embedding_scale(read, d_model=d_model, is_pre_norm=is_pre_norm),  # type: ignore[arg-type]
        initialization="moeut" if has_experts else "depth_scaled",
    )


def _depth(num_layers: int, group_size: int, *, order: Order) -> Depth:
    """Return the depth of ``num_layers`` applied layers, a group of them distinct.

    Raises:
        ValueError: the group does not divide the layers.
    """
    if group_size < 1 or num_layers % group_size:
        raise ValueError(
            f"transformer.universal.group_size={group_size}: must divide "
            f"transformer.encoder_n_layers={num_layers} (option of the MoEUT training code)"
        )
    repeats = num_layers // group_size
    # Of one layer, or one repeat, the two orders are the same, and only one of them has a name.
    has_order = group_size > 1 and repeats > 1
    return Depth(group=group_size, repeats=repeats, order=order if has_order else "cycle")


def training_code_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the training code's state dict belongs."""
    stack = config.stacks["decoder"]
    maps = [
        rename("embedding.weight", "embedding.weight"),
        rename("output.weight", "head.weight"),
        rename("output.bias", "head.bias"),
    ]
    if stack.final_norm:
        maps += rename_layer("out_norm", "decoder.final_norm")
    norms = ("self_attn.norm", "pkm.norm") if stack.norm == "peri" else ("norm1", "norm2")
    for index in range(stack.depth.group):
        if isinstance(stack.halting, StickBreaking):
            maps += sparse_universal_maps(index)
            continue
        theirs, ours = f"unique_layers.{index}", f"decoder.layers.{index}"
        maps += rename_layer(f"{theirs}.{norms[0]}", f"{ours}.attention_norm")
        maps += rename_layer(f"{theirs}.{norms[1]}", f"{ours}.feed_forward_norm")
        maps += _attention_maps(f"{theirs}.self_attn", f"{ours}.attention", stack.attention)
        if isinstance(stack.feed_forward, SigmaMoE):
            names = {"keys": "up", "values": "down", "expert_sel": "router"}
            maps += [
                rename(f"{theirs}.pkm.{a}", f"{ours}.feed_forward.{b}") for a, b in names.items()
            ]
        else:
            maps += [
                rename(f"{theirs}.{a}.{part}", f"{ours}.feed_forward.{b}.{part}")
                for a, b in {"linear1": "up", "linear2": "down"}.items()
                for part in ("weight", "bias")
            ]
    return maps


def _attention_maps(theirs: str, ours: str, attention: AttentionOptions) -> list[TensorMap]:
    if isinstance(attention, DenseAttention) and attention.gates == "none":
        return [
            rename(f"{theirs}.data_to_q.weight", f"{ours}.query.weight"),
            key_value_halves(
                f"{theirs}.data_to_kv.weight", f"{ours}.key.weight", f"{ours}.value.weight"
            ),
            rename(f"{theirs}.out_proj.weight", f"{ours}.output.weight"),
        ]
    maps = [
        rename(f"{theirs}.projections.q", f"{ours}.query.weight"),
        rename(f"{theirs}.projections.k", f"{ours}.key.weight"),
    ]
    if isinstance(attention, SwitchHead):
        return [
            *maps,
            rename(f"{theirs}.projections.v", f"{ours}.value"),
            rename(f"{theirs}.projections.o", f"{ours}.output"),
            rename(f"{theirs}.selections.v", f"{ours}.value_router"),
            rename(f"{theirs}.selections.o", f"{ours}.output_router"),
        ]
    sizes = {"num_heads": attention.num_heads, "head_size": attention.head_size}
    return [
        *maps,
        head_blocks(f"{theirs}.projections.v", f"{ours}.value.weight", transposed=True, **sizes),
        head_blocks(f"{theirs}.projections.o", f"{ours}.output.weight", transposed=False, **sizes),
        rename(f"{theirs}.selections.v", f"{ours}.value_gate"),
        rename(f"{theirs}.selections.o", f"{ours}.output_gate"),
    ]


def _experts(
    read: RawOptions, *, num_heads: int, head_size: int
) -> tuple[AttentionOptions, FeedForwardOptions]:
    balance_loss = read.number("moe.perplexity_reg", 0.0)
    expert_dropout = read.number("moe.drop_expert", 0.0)
    feed_forward = SigmaMoE(
        num_experts=read.integer("moe.n_experts", 128),
        expert_size=read.integer("moe.expert_size", 128),
        top_k=read.integer("pkm.n_heads", 1),
        router="softmax"
        if read.word("moe.selection_mode", ("sigmoid", "gate"), "sigmoid") == "gate"
        else "sigmoid",
        balance_loss=balance_loss,
        expert_dropout=expert_dropout,
    )
    attention_balance = read.number_or_none("moe.att.perplexity_reg")
    attention_balance = balance_loss if attention_balance is None else attention_balance
    if balance_loss or attention_balance:
        mode = read.word("moe.perplexity_reg_mode", ("layers_time",), "step")
        if read.raw("moe.att.perplexity_reg_mode", None) is not None:
            read.word("moe.att.perplexity_reg_mode", (mode,))
    if not read.boolean("moe.att.enable", False):
        if read.boolean("moe.nonorm", False):
            raise read.error("moe.nonorm", True, "only supported with moe.att.enable")
        return DenseAttention(num_heads=num_heads, head_size=head_size), feed_forward

    num_experts, top_k = read.integer("moe.att.n_experts", 4), read.integer("moe.att.k", 2)
    if num_experts == 1 and top_k == 1:
        return DenseAttention(
            num_heads=num_heads, head_size=head_size, gates="value_and_output"
        ), feed_forward
    attention_dropout = read.number_or_none("moe.att.drop_expert")
    return SwitchHead(
        num_heads=num_heads,
        head_size=head_size,
        num_experts=num_experts,
        top_k=top_k,
        balance_loss=attention_balance,
        expert_dropout=expert_dropout if attention_dropout is None else attention_dropout,
        renormalise_experts=read.boolean("moe.att.norm_init", False),
    ), feed_forward


def _embedding_scale(read: RawOptions, *, d_model: int, is_pre_norm: bool) -> str:
    scale = read.number_or_none("transformer.embedding_scale")
    if scale is None:
        return "none" if is_pre_norm else "sqrt_d_model"
    if scale == 1.0:
        return "none"
    if math.isclose(scale, math.sqrt(d_model), rel_tol=1e-6):
        return "sqrt_d_model"
    raise read.error("transformer.embedding_scale", scale, "supported are 1 and sqrt(state_size)")


def _refuse_unsupported(read: RawOptions, *, has_experts: bool) -> None:
    """Raise for every option whose value would make another model than we can build."""

    def false(name: str, default: bool = False) -> None:
        read.require(name, read.boolean(name, default), False, default=default)

    def true(name: str, default: bool) -> None:
        read.require(name, read.boolean(name, default), True, default=default)

    def zero(name: str) -> None:
        read.require(name, read.number(name, 0.0), 0.0, default=0.0)

    read.word("transformer.activation", ("relu",), "relu")
    read.require("embedding_size", read.integer_or_none("embedding_size"), None, default=None)
    # Without a state from the segment before, context changes nothing; the code's own default is 1.
    read.require(
        "lm.trafo.context_blocks", read.integer("lm.trafo.context_blocks", 0), 0, default=0
    )
    for name in ("dropout", "transformer.p_drop_layer"):
        zero(name)
    read.require("reg", read.number("reg", 1.0), 1.0, default=1.0)
    for name in ("reg_scales", "reg_lin_decay"):
        if read.raw(name, None) not in (None, "", {}, []):
            raise read.error(name, read.raw(name), "must be empty")
    if not has_experts:
        return
    for name in ("moe.selection_dropout", "moe.att.selection_dropout", "moe.att.dropout"):
        zero(name)
    for name in ("moe.activation_after_topk", "moe.bias", "moe.sel_bias"):
        false(name)
    if read.boolean("moe.att.enable", False):
        for name in ("moe.att.q_expert", "moe.att.k_expert"):
            false(name, default=True)
        for name in ("moe.att.v_expert", "moe.att.o_expert"):
            true(name, default=True)
        for name in ("moe.att.same_sel", "moe.att.separate_kq_sel"):
            false(name)
        read.word("moe.att.selection_mode", ("sigmoid",), "sigmoid")
        v_size = read.integer_or_none("moe.att.v_size")
        read.require("moe.att.v_size", v_size, None, default=None)
