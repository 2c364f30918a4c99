"""The model config: what it refuses, what it fills in, and that it goes to plain data and back."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
from typing import Any

import pytest

from moeut.architectures import preset
from moeut.blocks.attention import ATTENTION, DenseAttention, SwitchHead
from moeut.blocks.feed_forward import FEED_FORWARD, DenseFeedForward, SigmaMoE
from moeut.blocks.positions import POSITION, Learned, Relative, Rotary, Sinusoidal
from moeut.blocks.updates import UPDATE
from moeut.config import ModelConfig
from moeut.design import Blueprint
from moeut.options import OptionError, Options
from moeut.presets import PRESETS
from moeut.recurrence.schedule import Depth

DATA: dict[str, Any] = {
    "form": "decoder_lm",
    "d_model": 8,
    "vocabulary_size": 10,
    "depth": {"group": 2, "repeats": 2},
    "attention": {"kind": "dense", "num_heads": 2},
    "feed_forward": {"kind": "dense", "hidden_size": 8},
}
CLASSIFIER = {"form": "encoder_classifier", "num_classes": 3}


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(DATA | changes)


@pytest.mark.parametrize("name", PRESETS)
def test_plain_data_reads_back_equal(name: str) -> None:
    config = preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("block", "kind"),
    [(block, kind) for block, kinds in {
        "attention": ATTENTION, "feed_forward": FEED_FORWARD, "position": POSITION,
        "update": UPDATE,
    }.items() for kind in kinds],
)  # fmt: skip
def test_every_kind_reads_back_equal(block: str, kind: str) -> None:
    both = {"form": "encoder_decoder", "source_vocabulary_size": 7}
    others = {
        "geometric": {"position": "none"},
        "token_mixing": {"position": "none"} | CLASSIFIER,
        "deepnorm": {"norm": "post"},
    }.get(kind, {})
    options = {"abacus": {"kind": kind, "digits": [1, 4], "source_digits": [2]}}.get(kind, kind)
    sizes = {"d_model": 16} | ({} if "form" in others else both)
    config = read(**{block: options}, **others, **sizes)
    data = json.loads(json.dumps(config.to_dict()))
    assert data[block]["kind"] == kind
    assert ModelConfig.from_dict(data) == config


def test_what_follows_from_other_options_is_filled_in() -> None:
    config = read(dropout=0.25)
    spelled = read(
        dropout=0.25,
        attention=DATA["attention"] | {"head_size": 4, "dropout": 0.25},
        feed_forward=DATA["feed_forward"] | {"dropout": 0.25},
        final_norm=True,
        position={"kind": "rotary", "fraction": 0.5},
        encoder_depth=DATA["depth"],
    )
    assert config == spelled
    assert config.to_dict() == spelled.to_dict()
    assert read(norm="post").final_norm is False
    assert read(norm="post", final_norm=True).final_norm is True
    own = read(dropout=0.25, attention=DATA["attention"] | {"dropout": 0.0, "head_size": 6})
    assert (own.attention.dropout, own.attention.head_size) == (0.0, 6)


def test_zero_and_zero_point_zero_are_one_config() -> None:
    assert json.dumps(read(dropout=0).to_dict()) == json.dumps(read(dropout=0.0).to_dict())


def test_stacks_of_each_form() -> None:
    (name, stack), *none = read().stacks.items()
    assert (name, stack.causal, stack.cross_attention, none) == ("decoder", True, False, [])
    (name, stack), *none = read(**CLASSIFIER).stacks.items()
    assert (name, stack.causal, stack.cross_attention, none) == ("encoder", False, False, [])
    encoder, decoder = read(
        form="encoder_decoder", source_vocabulary_size=4, encoder_depth={"group": 1, "repeats": 3}
    ).stacks.values()
    assert (encoder.depth, decoder.depth) == (Depth(group=1, repeats=3), Depth(group=2, repeats=2))
    assert (decoder.causal, decoder.cross_attention) == (True, True)
    assert (encoder.attention, encoder.d_model) == (decoder.attention, 8)


@pytest.mark.parametrize(
    ("changes", "option", "expected"),
    [
        ({"d_modle": 3}, "d_modle", r"unknown; model takes .*did you mean 'd_model'"),
        ({"d_model": 0}, "d_model", "must be a whole number of at least 1"),
        ({"d_model": True}, "d_model", "expected a whole number"),
        (
            {
                "outer_width": 2,
                "feed_forward": {
                    "kind": "sigma_moe",
                    "expert_size": 3,
                    "num_experts": 4,
                    "top_k": 3,
                },
            },
            "outer_width",
            "gives feed_forward.top_k=3: must be at most num_experts=2",
        ),
        ({"d_model": 9}, "attention.num_heads", "must divide d_model=9 unless head_size"),
        ({"depth": {"group": 2}}, "depth.repeats", "missing; expected a whole number"),
        (
            {"depth": {"grop": 2, "repeats": 1}},
            "depth.grop",
            "unknown; model.depth takes prelude, group, .*did you mean 'group'",
        ),
        ({"depth": 4}, "depth", "expected a mapping of prelude, group, repeats, coda, order"),
        ({"final_norm": "no"}, "final_norm", "expected true or false"),
        ({"norm": "peri_"}, "norm", r"peri, sandwich, branch; did you mean 'peri'"),
        ({"norm_epsilon": 0.0}, "norm_epsilon", "must be above 0"),
        ({"norm_input_weights": True}, "norm_input_weights", "no effect without norm_input"),
        ({"dropout": 1.0}, "dropout", "must be at least 0 and below 1"),
        ({"initialization": "glorut"}, "initialization", "did you mean 'glorot'"),
        ({"embedding_scale": "sqrt"}, "embedding_scale", "expected one of none, sqrt_d_model"),
        ({"head_bias": 1}, "head_bias", "expected true or false"),
        (
            {"attention": "dens"},
            "attention.kind",
            r"one of dense, switch_head, .*; did you mean 'dense'",
        ),
        ({"attention": 3}, "attention", "a mapping with a kind, or one of dense, switch_head, geo"),
        ({"attention": {}}, "attention.kind", "expected one of dense, switch_head, geometric"),
        (
            {"attention": {"kind": "dense", "num_experts": 3}},
            "attention.num_experts",
            r"kind 'dense' takes num_heads, .*\(it is an option of kind 'switch_head'",
        ),
        (
            {"attention": {"kind": "dense", "gates": "outputs"}},
            "attention.gates",
            "did you mean 'output'",
        ),
        (
            {"attention": {"kind": "switch_head", "top_k": 5}},
            "attention.top_k",
            "must be at most num_experts=4",
        ),
        (
            {"feed_forward": {"kind": "sigma_moe", "hidden_size": 3}},
            "feed_forward.hidden_size",
            r"kind 'sigma_moe' takes num_experts.*\(it is an option of kind 'dense'",
        ),
        (
            {"feed_forward": {"kind": "sigma_moe", "balance_loss": -1.0}},
            "feed_forward.balance_loss",
            "must be a finite number of at least 0",
        ),
        ({"position": {"fraction": 0.0}}, "position.fraction", r"must be in \(0, 1\]"),
        ({"position": {"fraction": "0.5"}}, "position.fraction", "expected a number"),
        (
            {"position": {"fraction": 0.3}},
            "position.fraction",
            "rotates no channel of a head of head_size=4",
        ),
        (
            {"position": {"kind": "sinusoidal", "max_length": 4}},
            "position.max_length",
            "option of kind 'learned'",
        ),
        ({"update": "copy"}, "update.kind", "expected one of residual"),
        ({"form": "decoder"}, "form", "expected one of decoder_lm, encoder_decoder"),
        ({"vocabulary_size": -1}, "vocabulary_size", "must be a whole number of at least 1"),
        ({"num_classes": 3}, "num_classes", "form='decoder_lm' does not take it"),
        ({"form": "encoder_classifier"}, "num_classes", "missing; form='encoder_classifier' ne"),
        (CLASSIFIER | {"num_classes": 0}, "num_classes", "must be a whole number of at least 1"),
        ({"form": "encoder_decoder"}, "source_vocabulary_size", "missing; form='encoder_decod"),
        (
            {"encoder_depth": Depth(group=1, repeats=1).to_dict()},
            "encoder_depth",
            "has no effect with form='decoder_lm', only with encoder_decoder",
        ),
        ({"pooling": "last"}, "pooling", "has no effect with form='decoder_lm', only with enc"),
        (CLASSIFIER | {"pooling": "middle"}, "pooling", "expected one of first, last"),
        (CLASSIFIER | {"tie_embeddings": True}, "tie_embeddings", "has no output vocabulary"),
    ],
)
def test_a_refusal_has_path_value_and_what_is_allowed(
    changes: dict[str, Any], option: str, expected: str
) -> None:
    with pytest.raises(OptionError, match=expected) as caught:
        read(**changes)
    assert caught.value.option == option
    value: Any = DATA | changes
    for name in option.split("."):
        value = value.get(name) if isinstance(value, dict) else value
    if option == "attention.kind" and isinstance(changes["attention"], str):
        value = changes["attention"]
    assert caught.value.value == value


def test_options_of_another_block_are_refused_by_construction() -> None:
    blocks = {
        "depth": Depth(group=1, repeats=1),
        "attention": DenseAttention(),
        "feed_forward": DenseFeedForward(),
    }
    assert Blueprint(**blocks).attention.head_size == 32
    with pytest.raises(OptionError, match=r"attention=.*expected options of kind dense or switch"):
        Blueprint(**blocks | {"attention": Rotary()})
    with pytest.raises(OptionError, match=r"feed_forward=.*expected options of kind dense or sig"):
        Blueprint(**blocks | {"feed_forward": SwitchHead()})


@pytest.mark.parametrize(
    "options",
    [Blueprint, ModelConfig, Depth, *(kind for kinds in (ATTENTION, FEED_FORWARD, POSITION, UPDATE)
                                      for kind in kinds.values())],
)  # fmt: skip
def test_every_option_is_documented_once(options: type[Options]) -> None:
    documented: list[str] = []
    for cls in options.__mro__:
        if not (isinstance(cls, type) and issubclass(cls, Options)):
            continue
        assert cls.__doc__
        body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                documented.append(field.target.id)  # type: ignore[union-attr]
    names = [field.name for field in dataclasses.fields(options)]
    assert [documented.count(name) for name in names] == [1] * len(names)


def test_blocks_can_be_made_by_hand() -> None:
    assert SigmaMoE(top_k=2) == SigmaMoE.from_dict({"top_k": 2})
    assert Sinusoidal(scale="inverse_sqrt").to_dict() == {
        "kind": "sinusoidal",
        "scale": "inverse_sqrt",
        "table": "float32",
    }
    assert (Learned().max_length, Relative().learned_scale) == (1024, False)
