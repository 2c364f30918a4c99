"""Named architectures: what they make of their options, and what they refuse."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import typing
from typing import Any

import pytest
import torch

import moeut
from moeut import ARCHITECTURES, architecture, config
from moeut.architectures import Options
from moeut.config import ModelConfig

FORMS: dict[str, dict[str, Any]] = {
    "decoder_lm": {},
    "encoder_decoder": {"source_vocabulary_size": 9},
    "encoder_classifier": {"num_classes": 3},
}


def language_model(name: str, **options: Any) -> ModelConfig:
    return architecture(name, form="decoder_lm", vocabulary_size=11, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("form", FORMS)
def test_defaults_build_and_run_in_every_form(name: str, form: str) -> None:
    model = moeut.build(
        architecture(name, form=form, vocabulary_size=11, d_model=32, num_layers=2, **FORMS[form])
    )
    tokens = torch.randint(9, (2, 6))
    output = model(tokens, tokens) if form == "encoder_decoder" else model(tokens)
    assert output.logits.shape == ((2, 3) if form == "encoder_classifier" else (2, 6, 11))
    assert torch.isfinite(output.logits).all()


def test_what_each_architecture_is() -> None:
    stacks = {name: language_model(name, num_layers=6).decoder for name in ARCHITECTURES}
    assert {name: stack.group_size for name, stack in stacks.items()} == {
        "transformer": 6,
        "universal": 1,
        "moeut": 2,
        "sigma_moe": 6,
    }
    assert {name: stack.norm for name, stack in stacks.items()} == {
        "transformer": "pre",
        "universal": "pre",
        "moeut": "peri",
        "sigma_moe": "peri",
    }
    assert isinstance(stacks["moeut"].attention, config.SwitchHead)
    assert stacks["sigma_moe"].attention.attention_gates == "value_and_output"
    assert stacks["transformer"].attention.attention_gates == "none"
    assert isinstance(stacks["universal"].feed_forward, config.DenseFeedForward)
    assert isinstance(stacks["sigma_moe"].feed_forward, config.SigmaMoE)


def test_one_attention_expert_is_dense_with_gates() -> None:
    attention = language_model("moeut", attention_experts=1).decoder.attention
    assert attention == config.DenseAttention(
        num_heads=4, head_size=32, attention_gates="output", dropout=0.0
    )


def test_the_preset_can_be_written_as_options() -> None:
    options = {
        "d_model": 412,
        "num_layers": 16,
        "num_heads": 4,
        "head_size": 82,
        "attention_experts": 8,
        "num_experts": 155,
        "expert_size": 128,
        "top_k": 12,
        "renormalise_attention_experts": False,
    }
    written = architecture("moeut", form="decoder_lm", vocabulary_size=8000, **options)
    assert written == moeut.PRESETS["moeut-44m"]


@pytest.mark.parametrize(
    ("options", "scale", "position"),
    [
        ({"initialization": "glorot", "embedding_scale": "sqrt_d_model"}, "none", "sinusoidal"),
        ({"initialization": "normal"}, "none", "sinusoidal"),
        ({"initialization": "kaiming"}, "inverse_sqrt", "sinusoidal"),
        ({"initialization": "glorot"}, None, "relative"),
    ],
)
@pytest.mark.parametrize("name", ["transformer", "universal"])
def test_published_encoder_decoders_can_be_written(
    name: str, options: dict[str, Any], scale: str | None, position: str
) -> None:
    """The SCAN models of arXiv 2108.12284, in their three embedding scalings and relative."""
    if scale not in (None, "none"):
        options = options | {"position_scale": scale}
    made = architecture(
        name,
        form="encoder_decoder",
        vocabulary_size=8,
        source_vocabulary_size=15,
        d_model=128,
        num_layers=3,
        num_heads=8,
        feed_forward_size=256,
        norm="post",
        position=position,
        dropout=0.1,
        tie_embeddings=True,
        **options,
    )
    theirs = {
        ("glorot", "sinusoidal"): "opennmt",
        ("normal", "sinusoidal"): "noscale",
        ("kaiming", "sinusoidal"): "scaledinit",
        ("glorot", "relative"): "relative",
    }[options["initialization"], position]
    if name == "universal":
        theirs = "relative_universal" if theirs == "relative" else f"universal_{theirs}"
    from moeut.interop.transformer_generalization import transformer_generalization_config

    published = transformer_generalization_config(
        {
            "transformer.variant": theirs,
            "state_size": 128,
            "transformer.n_heads": 8,
            "transformer.ff_multiplier": 2,
            "transformer.encoder_n_layers": 3,
            "transformer.tied_embedding": 1,
        },
        source_vocabulary_size=15,
        vocabulary_size=8,
    )
    assert made == published


def test_stacks_of_different_depth() -> None:
    made = architecture(
        "universal",
        form="encoder_decoder",
        vocabulary_size=8,
        source_vocabulary_size=9,
        num_layers=4,
        num_decoder_layers=6,
    )
    assert (made.encoder.num_layers, made.decoder.num_layers) == (4, 6)


def test_left_out_values_follow_others() -> None:
    made = language_model("transformer", dropout=0.3).decoder
    assert (made.attention.dropout, made.feed_forward.dropout, made.dropout) == (0.3, 0.3, 0.3)
    made = language_model("transformer", dropout=0.5, attention_dropout=0.1).decoder
    assert (made.attention.dropout, made.dropout) == (0.1, 0.5)
    assert language_model("transformer", norm="post").decoder.final_norm is False
    assert language_model("transformer", norm="post", final_norm=True).decoder.final_norm is True


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("moeutt", {}, r"architecture='moeutt': expected one of .* did you mean 'moeut'"),
        ("moeut", {"num_expert": 3}, r"num_expert=3: .*did you mean 'num_experts'"),
        ("transformer", {"num_experts": 3}, r"num_experts=3: architecture 'transformer' takes"),
        ("universal", {"d_model": "128"}, r"d_model='128': expected a whole number"),
        ("universal", {"d_model": 128.0}, r"d_model=128.0: expected a whole number"),
        ("universal", {"d_model": True}, r"d_model=True: expected a whole number"),
        ("universal", {"dropout": "0.1"}, r"dropout='0.1': expected a number"),
        ("universal", {"tie_embeddings": 1}, r"tie_embeddings=1: expected true or false"),
        ("universal", {"norm": "prep"}, r"norm='prep': expected one of pre, post, peri"),
        ("universal", {"d_model": 0}, r"d_model=0: must be"),
        ("universal", {"num_heads": 3}, r"num_heads=3: must divide d_model=128"),
        ("universal", {"group_size": 3}, r"group_size=3: must divide num_layers=4"),
        ("moeut", {"top_k": 17}, r"top_k=17: must be at most num_experts=16"),
        ("moeut", {"attention_top_k": 5}, r"attention_top_k=5: must be at most attention_expert"),
        ("moeut", {"dropout": 1.0}, r"dropout=1.0: must be at least 0 and below 1"),
        ("moeut", {"position_scale": "inverse_sqrt"}, r"position_scale=.*: has no effect with pos"),
        ("moeut", {"num_encoder_layers": 2}, r"num_encoder_layers=2: has no effect with form="),
        ("moeut", {"pooling": "last"}, r"pooling='last': has no effect with form="),
        ("moeut", {"attention_gates": "none"}, r"attention_gates='none': has no effect with att"),
        (
            "moeut",
            {"attention_experts": 1, "attention_top_k": 1},
            r"attention_top_k=1: has no effect with attention_experts=1",
        ),
        (
            "moeut",
            {"match_parameters": 900_000, "num_experts": 20},
            r"num_experts=20: has no effect with match_parameters=900000",
        ),
        (
            "transformer",
            {"match_parameters": 900_000, "feed_forward_size": 20},
            r"feed_forward_size=20: has no effect with match_parameters=900000",
        ),
        ("moeut", {"match_parameters": 5}, r"match_parameters=5: the smallest feed-forward"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        language_model(name, **options)


def test_plain_values_pass() -> None:
    made = language_model("moeut", dropout=0, head_size=None, match_parameters=None)
    assert made == language_model("moeut")


@pytest.mark.parametrize("options", ARCHITECTURES.values())
def test_every_option_is_documented(options: type[Options]) -> None:

    documented: set[str] = set()
    for cls in options.__mro__[:-1]:
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                documented.add(typing.cast(ast.Name, field.target).id)
    assert {field.name for field in dataclasses.fields(options)} <= documented
