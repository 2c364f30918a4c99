"""Import models of the published clean release (RobertCsordas/moeut at 87f0497)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moeut.blocks.attention import AttentionOptions, DenseAttention, SwitchHead
from moeut.blocks.feed_forward import SigmaMoE
from moeut.config import ModelConfig
from moeut.interop.mapping import RawOptions, TensorMap, load, rename, rename_layer
from moeut.models import DecoderLM
from moeut.options import nearest
from moeut.recurrence.schedule import Depth

_ARGUMENTS = (
    "n_tokens",
    "d_model",
    "n_layers",
    "n_heads",
    "ff_n_experts",
    "att_n_experts",
    "d_head",
    "group_size",
    "ff_k",
    "att_k",
    "ff_expert_dropout",
    "att_expert_dropout",
    "ff_expert_size",
    "dropout",
    "entropy_reg",
    "att_entropy_reg",
)


def from_release(config: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the model that the release's ``MoEUTLM(**config)`` with ``state_dict`` is.

    ``config`` holds constructor arguments; what is left out has the constructor's default. The
    model has the dtype of ``state_dict`` and is in training mode, as a new module is.

    Computed in float64 it differs from the release in the eighth digit: the release keeps router
    logits of attention, the balance loss and rotary frequencies in float32 even there.

    Raises:
        ValueError: an argument is not known or not supported, or tensors are missing, left over or
            of another shape.
    """
    ours = release_config(config)
    return load(DecoderLM, ours, release_maps(ours), state_dict)


def release_config(config: dict[str, Any]) -> ModelConfig:
    """Return the model config of the release's constructor arguments.

    The release runs ``n_layers // group_size`` repeats: layers beyond the last full group do not
    exist.

    Raises:
        ValueError: an argument is not known or not supported.
    """
    for name in config:
        if name not in _ARGUMENTS:
            raise ValueError(
                f"{name}={config[name]!r}: not an argument of the release's MoEUTLM; it takes "
                f"{', '.join(_ARGUMENTS)}{nearest(name, _ARGUMENTS)}"
            )
    options = RawOptions(config, source="the MoEUT release")
    # The release drops after the attention alone, which no dropout of ours does.
    options.require("dropout", options.number("dropout", 0.0), 0.0, default=0.0)
    d_model, num_heads = options.integer("d_model"), options.integer("n_heads", least=1)
    group_size = options.integer("group_size", 2)
    num_repeats = options.integer("n_layers") // max(group_size, 1)
    if num_repeats < 1:
        raise options.error(
            "n_layers", config["n_layers"], f"expected at least group_size={group_size}"
        )
    head_size = options.integer_or_none("d_head") or d_model // num_heads
    attention_experts = options.integer("att_n_experts")
    attention: AttentionOptions
    if attention_experts == 1:
        attention = DenseAttention(num_heads=num_heads, head_size=head_size, gates="output")
    else:
        attention = SwitchHead(
            num_heads=num_heads,
            head_size=head_size,
            num_experts=attention_experts,
            top_k=options.integer("att_k", 2),
            balance_loss=options.number("att_entropy_reg", 0.001),
            expert_dropout=options.number("att_expert_dropout", 0.0),
            renormalise_experts=False,
        )
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=options.integer("n_tokens"),
        depth=Depth(group=group_size, repeats=num_repeats),
        attention=attention,
        feed_forward=SigmaMoE(
            num_experts=options.integer("ff_n_experts"),
            expert_size=options.integer("ff_expert_size", 128),
            top_k=options.integer("ff_k", 8),
            balance_loss=options.number("entropy_reg", 0.01),
            expert_dropout=options.number("ff_expert_dropout", 0.0),
            renormalise_router=True,
        ),
        norm="peri",
        initialization="moeut",
    )


def release_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the release's state dict belongs."""
    maps = [
        rename("embedding.weight", "embedding.weight"),
        rename("lm_head.weight", "head.weight"),
        rename("lm_head.bias", "head.bias"),
        *rename_layer("out_norm", "decoder.final_norm"),
    ]
    for index in range(config.depth.group):
        theirs, ours = f"transformer.layers.{index}", f"decoder.layers.{index}"
        names = {
            "attention.q.weight": "attention.query.weight",
            "attention.k.weight": "attention.key.weight",
            "ffn.keys": "feed_forward.up",
            "ffn.values": "feed_forward.down",
            "ffn.expert_sel": "feed_forward.router",
        }
        if isinstance(config.attention, SwitchHead):
            names |= {
                "attention.v": "attention.value",
                "attention.o": "attention.output",
                "attention.sel_v": "attention.value_router",
                "attention.sel_o": "attention.output_router",
            }
        else:
            names |= {
                "attention.v": "attention.value.weight",
                "attention.o": "attention.output.weight",
                "attention.sel_o": "attention.output_gate",
            }
        maps += [rename(f"{theirs}.{a}", f"{ours}.{b}") for a, b in names.items()]
        maps += rename_layer(f"{theirs}.ln1", f"{ours}.attention_norm")
        maps += rename_layer(f"{theirs}.ln2", f"{ours}.feed_forward_norm")
    return maps
