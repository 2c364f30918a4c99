"""The model config: what it refuses, and that it goes to plain data and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moeut import PRESETS
from moeut.config import (
    DenseAttention,
    DenseFeedForward,
    Learned,
    ModelConfig,
    Relative,
    Rotary,
    SigmaMoE,
    Sinusoidal,
    StackConfig,
    SwitchHead,
)

ATTENTION = DenseAttention(num_heads=2, head_size=4)
FEED_FORWARD = DenseFeedForward(hidden_size=8)


def stack(**options: Any) -> StackConfig:
    defaults = {
        "num_layers": 4,
        "group_size": 2,
        "attention": ATTENTION,
        "feed_forward": FEED_FORWARD,
    }
    return StackConfig(**(defaults | options))


def model(**options: Any) -> ModelConfig:
    defaults = {
        "form": "decoder_lm",
        "d_model": 8,
        "vocabulary_size": 10,
        "decoder": stack(),
    }
    return ModelConfig(**(defaults | options))


@pytest.mark.parametrize("name", PRESETS)
def test_plain_data_reads_back_equal(name: str) -> None:
    data = json.loads(json.dumps(PRESETS[name].to_dict()))
    assert ModelConfig.from_dict(data) == PRESETS[name]


def test_every_kind_reads_back_equal() -> None:
    config = model(
        form="encoder_decoder",
        source_vocabulary_size=7,
        encoder=stack(
            attention=SwitchHead(num_heads=1, head_size=4, num_experts=3), position=Relative()
        ),
        decoder=stack(
            feed_forward=SigmaMoE(num_experts=3, top_k=2),
            position=Learned(max_length=9),
            schedule="sequence",
        ),
    )
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_repeats_and_sharing() -> None:
    assert (stack().num_repeats, stack().is_shared) == (2, True)
    assert stack(group_size=4).is_shared is False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack(group_size=3), r"group_size=3: must divide num_layers=4; allowed: 1, 2, 4"),
        (lambda: stack(num_layers=0), r"num_layers=0: must be a whole number of at least 1"),
        (lambda: stack(num_layers=2.5), r"num_layers=2.5: expected a whole number"),
        (lambda: stack(num_layers=True), r"num_layers=True: expected a whole number"),
        (lambda: stack(final_norm="no"), r"final_norm='no': expected true or false"),
        (lambda: stack(attention=Rotary()), r"expected DenseAttention or SwitchHead"),
        (lambda: stack(norm_epsilon=0.0), r"norm_epsilon=0.0: must be above 0"),
        (
            lambda: stack(attention=DenseAttention(num_heads=2, head_size=3)),
            r"fraction=0.5: rotates no channel of a head of head_size=3",
        ),
        (
            lambda: Sinusoidal(scale="sqrt"),
            r"scale='sqrt': expected one of none, inverse_sqrt",
        ),
        (
            lambda: DenseAttention(num_heads=2, head_size=4, attention_gates="outputs"),
            r"attention_gates='outputs': expected .* did you mean 'output'",
        ),
        (lambda: SigmaMoE(num_experts=9, router="sofmax"), r"router='sofmax': .*'softmax'"),
        (lambda: SigmaMoE(num_experts=12, balance_loss=-1.0), r"balance_loss=-1.0: must be"),
        (lambda: Rotary(fraction="0.5"), r"fraction='0.5': expected a number"),
        (lambda: model(initialization="glorut"), r"initialization='glorut': .*'glorot'"),
        (lambda: model(embedding_scale="sqrt"), r"embedding_scale='sqrt': expected one of"),
        (lambda: model(pooling="middle"), r"pooling='middle': expected one of first, last"),
        (lambda: model(head_bias=1), r"head_bias=1: expected true or false"),
        (
            lambda: model(form="encoder_classifier", decoder=None, encoder=stack(), num_classes=0),
            r"num_classes=0: must be a whole number of at least 1",
        ),
        (lambda: stack(norm="peri_"), r"norm='peri_': expected one of .* did you mean 'peri'"),
        (lambda: stack(dropout=1.0), r"dropout=1.0"),
        (lambda: Rotary(fraction=0.0), r"fraction=0.0: must be above 0"),
        (lambda: SigmaMoE(num_experts=2, top_k=3), r"top_k=3: must be at most num_experts=2"),
        (lambda: model(decoder=None), r"form='decoder_lm' needs 'decoder'"),
        (lambda: model(num_classes=3), r"form='decoder_lm' does not take 'num_classes'"),
        (lambda: model(form="decoder"), r"form='decoder': expected one of"),
        (lambda: model(vocabulary_size=-1), r"vocabulary_size=-1"),
    ],
)
def test_wrong_values_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rounding_as_the_release_is_for_language_models() -> None:
    assert model(decoder=stack(float32_routing=True)).decoder.float32_routing
    with pytest.raises(ValueError, match="float32_routing=True: only form='decoder_lm'"):
        model(
            form="encoder_classifier",
            num_classes=3,
            decoder=None,
            encoder=stack(float32_routing=True),
        )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("decoder", "num_layer"), 3, r"model\.decoder\.num_layer: unknown.*'num_layers'"),
        (("decoder", "attention", "kind"), "dens", r"attention\.kind='dens'.*'dense'"),
        (("decoder", "attention", "num_experts"), 3, r"model\.decoder\.attention\.num_experts"),
        (("decoder", "position"), 3, r"model\.decoder\.position=3: expected a mapping"),
        (("decoder", "group_size"), 3, r"model\.decoder: group_size=3"),
    ],
)
def test_wrong_plain_data_is_named_by_its_path(
    path: tuple[str, ...], value: Any, message: str
) -> None:
    data = model().to_dict()
    at = data
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(data)
