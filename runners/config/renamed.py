"""Model options that had another name, most of them while the ``model`` section was flat.

The table is what a config in the flat form is refused with, and stands in
``docs/configuration.md``.
"""

from __future__ import annotations

from runners.config.yaml_nodes import ConfigError, Node

RENAMED: dict[str, str] = {
    "num_layers": "depth.group; of universal and moeut depth.repeats, after division by the group",
    "num_decoder_layers": "depth.group or depth.repeats, as for num_layers",
    "num_encoder_layers": "encoder_depth.group or encoder_depth.repeats, as for num_layers",
    "group_size": "depth.group",
    "schedule": "depth.order",
    "num_heads": "attention.num_heads",
    "head_size": "attention.head_size",
    "attention_dropout": "attention.dropout",
    "attention_experts": "attention.num_experts; for 1 attention.kind: dense",
    "attention_top_k": "attention.top_k",
    "attention_balance_loss": "attention.balance_loss",
    "attention_expert_dropout": "attention.expert_dropout",
    "attention_gates": "attention.gates, with attention.kind: dense",
    "renormalise_attention_experts": "attention.renormalise_experts",
    "feed_forward_size": "feed_forward.hidden_size",
    "feed_forward_bias": "feed_forward.bias",
    "num_experts": "feed_forward.num_experts",
    "expert_size": "feed_forward.expert_size",
    "top_k": "feed_forward.top_k",
    "router": "feed_forward.router",
    "balance_loss": "feed_forward.balance_loss",
    "expert_dropout": "feed_forward.expert_dropout",
    "renormalise_router": "feed_forward.renormalise_router",
    "rotary_fraction": "position.fraction",
    "position_scale": "position.scale",
    "max_length": "position.max_length",
    "match_parameters": "match.parameters, in the run's section match, which is beside model",
}
"""Old key of ``model`` → its new one, there or from the top, with what else is to be known."""


def refuse_renamed(key: str, child: Node) -> None:
    """Raise ConfigError for a key of the flat form, which named no block."""
    if key in RENAMED:
        raise ConfigError(
            f"renamed; write {RENAMED[key]}",
            path=f"model.{key}",
            value=child.plain(),
            place=child.place,
        )
