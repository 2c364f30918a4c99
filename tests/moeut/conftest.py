"""Small models for tests: random norms, so that a misplaced one shows, in float64."""

from typing import Any

import pytest
import torch

from moeut import config as c
from moeut.models import build

ATTENTION = {
    "dense": c.DenseAttention(num_heads=2, head_size=8),
    "output_gate": c.DenseAttention(num_heads=2, head_size=8, attention_gates="output"),
    "gates": c.DenseAttention(num_heads=2, head_size=8, attention_gates="value_and_output"),
    "switch_head": c.SwitchHead(num_heads=2, head_size=8, num_experts=3, top_k=2, balance_loss=0.1),
    "dropping_experts": c.SwitchHead(
        num_heads=2, head_size=8, num_experts=3, top_k=2, balance_loss=0.1, expert_dropout=0.6
    ),
}
FEED_FORWARD = {
    "dense": c.DenseFeedForward(hidden_size=32),
    "sigma_moe": c.SigmaMoE(num_experts=5, expert_size=8, top_k=2, balance_loss=0.2),
    "softmax": c.SigmaMoE(
        num_experts=5, expert_size=8, top_k=2, router="softmax", balance_loss=0.2
    ),
    "dropping_experts": c.SigmaMoE(
        num_experts=5, expert_size=8, top_k=2, balance_loss=0.2, expert_dropout=0.9
    ),
}
POSITION = {
    "rotary": c.Rotary(),
    "relative": c.Relative(),
    "learned_scale": c.Relative(learned_scale=True),
    "sinusoidal": c.Sinusoidal(),
    "scaled_sinusoidal": c.Sinusoidal(scale="inverse_sqrt"),
    "learned": c.Learned(max_length=40),
    "none": c.NoPosition(),
}
VOCABULARY, SOURCE_VOCABULARY, CLASSES, D_MODEL = 11, 13, 4, 16


def make_config(
    form: str = "decoder_lm",
    *,
    attention: str = "switch_head",
    feed_forward: str = "sigma_moe",
    position: str = "rotary",
    norm: str = "peri",
    num_layers: int = 4,
    group_size: int = 2,
    model: dict[str, Any] | None = None,
    **stack: Any,
) -> c.ModelConfig:
    one = c.StackConfig(
        num_layers=num_layers,
        group_size=group_size,
        attention=ATTENTION[attention],
        feed_forward=FEED_FORWARD[feed_forward],
        position=POSITION[position],
        norm=norm,
        final_norm=stack.pop("final_norm", norm != "post"),
        **stack,
    )
    parts = {
        "decoder_lm": {"decoder": one},
        "encoder_decoder": {
            "encoder": one,
            "decoder": one,
            "source_vocabulary_size": SOURCE_VOCABULARY,
        },
        "encoder_classifier": {"encoder": one, "num_classes": CLASSES},
    }[form]
    return c.ModelConfig(
        form=form, d_model=D_MODEL, vocabulary_size=VOCABULARY, **parts, **(model or {})
    )


def make_model(form: str = "decoder_lm", *, seed: int = 0, **options: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = build(make_config(form, **options)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm." in name or "relative." in name or name.endswith(".bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(name="make_config", scope="session")
def _make_config():
    return make_config


@pytest.fixture(name="make_model", scope="session")
def _make_model():
    return make_model
