"""Import looped language models with an exit gate (ByteDance/Ouro, ``modeling_ouro.py``).

What that code computes where it has labels, the cross entropy of the expected logits, is
``halting.loss: expected``; the paper (arXiv 2510.25741) trains with ``weighted``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moeut.blocks.attention import DenseAttention
from moeut.blocks.feed_forward import GatedFeedForward
from moeut.blocks.positions import Rotary
from moeut.config import ModelConfig
from moeut.interop.mapping import (
    PROJECTIONS,
    RawOptions,
    TensorMap,
    load,
    rename,
    rename_layer,
)
from moeut.models import DecoderLM
from moeut.recurrence.exit_gate import ExitGate
from moeut.recurrence.schedule import Depth

_LAYER = {
    "input_layernorm": "attention_norm",
    "input_layernorm_2": "attention_second_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "post_attention_layernorm_2": "feed_forward_second_norm",
    **PROJECTIONS,
}


def from_ouro(options: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the model that the code makes of ``options`` with ``state_dict``.

    ``options`` are those of a published ``config.json``.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    config = ouro_config(options)
    ignore = ("lm_head.weight",) if config.tie_embeddings else ()
    return load(DecoderLM, config, ouro_maps(config), state_dict, ignore=ignore)


def ouro_config(options: dict[str, Any]) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="Ouro")
    read.word("hidden_act", ("silu",), "silu")
    for name in ("use_sliding_window", "attention_bias"):
        read.require(name, read.boolean(name, False), False, default=False)
    read.require("rope_scaling", read.raw("rope_scaling", None), None, default=None)
    num_heads = read.integer("num_attention_heads", least=1)
    d_model = read.integer("hidden_size")
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=read.integer("vocab_size"),
        depth=Depth(
            group=read.integer("num_hidden_layers"), repeats=read.integer("total_ut_steps", 4)
        ),
        halting=ExitGate(
            loss="expected",
            entropy_weight=0.0,
            threshold=read.number("early_exit_threshold", 1.0),
            exit_at=read.integer_or_none("early_exit_step"),
            halted="update",
        ),
        attention=DenseAttention(
            num_heads=num_heads,
            num_key_heads=read.integer_or_none("num_key_value_heads") or num_heads,
            head_size=read.integer_or_none("head_dim") or d_model // num_heads,
            dropout=read.number("attention_dropout", 0.0),
        ),
        feed_forward=GatedFeedForward(hidden_size=read.integer("intermediate_size")),
        position=Rotary(base=read.number("rope_theta", 10000.0), fraction=1.0),
        norm="branch",
        norm_kind="rms",
        norm_epsilon=read.number("rms_norm_eps", 1e-6),
        repeat_norm=True,
        head_bias=False,
        tie_embeddings=read.boolean("tie_word_embeddings", False),
    )


def ouro_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    maps = [
        rename("model.embed_tokens.weight", "embedding.weight"),
        rename("model.norm.weight", "decoder.repeat_norm.weight"),
        *rename_layer("model.early_exit_gate", "decoder.controllers.halting"),
    ]
    if not config.tie_embeddings:
        maps.append(rename("lm_head.weight", "head.weight"))
    for index in range(config.depth.group):
        theirs, ours = f"model.layers.{index}", f"decoder.layers.{index}"
        maps += [rename(f"{theirs}.{a}.weight", f"{ours}.{b}.weight") for a, b in _LAYER.items()]
    return maps
