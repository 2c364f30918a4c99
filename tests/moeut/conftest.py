"""Small models for tests: random norms, so that a misplaced one shows, in float64."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moeut.blocks import positions as p
from moeut.blocks.attention import (
    DenseAttention,
    GeometricAttention,
    MixtureOfAttention,
    SwitchHead,
)
from moeut.blocks.feed_forward import (
    ConvolutionalFeedForward,
    DenseFeedForward,
    GatedFeedForward,
    SigmaMoE,
    SoftmaxMoE,
)
from moeut.config import ModelConfig
from moeut.models import build
from moeut.recurrence.schedule import Depth

sys.path.insert(0, str(Path(__file__).parent))  # for mechanism_cases

ATTENTION = {
    "dense": DenseAttention(num_heads=2, head_size=8),
    "output_gate": DenseAttention(num_heads=2, head_size=8, gates="output"),
    "gates": DenseAttention(num_heads=2, head_size=8, value_head_size=5, gates="value_and_output"),
    "geometric": GeometricAttention(num_heads=2, head_size=8),
    "grouped": DenseAttention(
        num_heads=4, head_size=4, num_key_heads=2, qk_norm="after", bias="all", gates="value"
    ),
    "grouped_geometric": GeometricAttention(
        num_heads=4,
        head_size=4,
        value_head_size=3,
        num_key_heads=2,
        qk_norm="before",
        bias="all",
    ),
    "mixture": MixtureOfAttention(
        num_heads=2, head_size=4, num_experts=3, top_k=2, balance_loss=0.3
    ),
    "switch_head": SwitchHead(num_heads=2, head_size=8, num_experts=3, top_k=2, balance_loss=0.1),
    "dropping_experts": SwitchHead(
        num_heads=2, head_size=8, num_experts=3, top_k=2, balance_loss=0.1, expert_dropout=0.6
    ),
}
FEED_FORWARD = {
    "dense": DenseFeedForward(hidden_size=32),
    "gated": GatedFeedForward(hidden_size=24, bias=True),
    "short_convolution": GatedFeedForward(hidden_size=24, short_convolution=3),
    "convolutional": ConvolutionalFeedForward(hidden_size=12),
    "convolutional_both": ConvolutionalFeedForward(hidden_size=12, sides="both"),
    "softmax_moe": SoftmaxMoE(num_experts=4, expert_size=6, top_k=2, balance_loss=0.3),
    "sigma_moe": SigmaMoE(num_experts=5, expert_size=8, top_k=2, balance_loss=0.2),
    "softmax": SigmaMoE(num_experts=5, expert_size=8, top_k=2, router="softmax", balance_loss=0.2),
    "dropping_experts": SigmaMoE(
        num_experts=5, expert_size=8, top_k=2, balance_loss=0.2, expert_dropout=0.9
    ),
}
POSITION = {
    "rotary": p.Rotary(),
    "rotary_pairs": p.Rotary(pairs=True),
    "relative": p.Relative(),
    "learned_scale": p.Relative(learned_scale=True),
    "absolute_gate": p.Relative(learned_scale=True, absolute_gate=True),
    "sinusoidal": p.Sinusoidal(),
    "scaled_sinusoidal": p.Sinusoidal(scale="inverse_sqrt"),
    "learned": p.Learned(max_length=40),
    "none": p.NoPosition(),
    "clipped": p.Clipped(max_distance=3),
    "fire": p.Fire(hidden_size=5, threshold=3.0),
    "abacus": p.Abacus(max_length=8, max_offset=3, digits=(1, 5, 9), source_digits=(3, 9)),
}
VOCABULARY, SOURCE_VOCABULARY, CLASSES, D_MODEL = 11, 13, 4, 16


def make_config(
    form: str = "decoder_lm",
    *,
    attention: Any = "switch_head",
    feed_forward: Any = "sigma_moe",
    position: Any = "rotary",
    norm: str = "peri",
    group: int = 2,
    repeats: int = 2,
    prelude: int = 0,
    coda: int = 0,
    order: str = "cycle",
    **others: Any,
) -> ModelConfig:
    sizes = {
        "decoder_lm": {},
        "encoder_decoder": {"source_vocabulary_size": SOURCE_VOCABULARY},
        "encoder_classifier": {"num_classes": CLASSES},
        "encoder_labeller": {"num_classes": CLASSES},
    }[form]
    defaults = {"d_model": D_MODEL, "initialization": "moeut"}
    return ModelConfig(
        form=form,
        vocabulary_size=VOCABULARY,
        depth=Depth(prelude=prelude, group=group, repeats=repeats, coda=coda, order=order),
        attention=ATTENTION.get(attention, attention),
        feed_forward=FEED_FORWARD.get(feed_forward, feed_forward),
        position=POSITION.get(position, position),
        norm=norm,
        **sizes | defaults | others,
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
