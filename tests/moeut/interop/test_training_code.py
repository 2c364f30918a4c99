"""Options of the training code: defaults, raw strings, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import moeut
from moeut.blocks.attention import SwitchHead
from moeut.blocks.positions import NoPosition
from moeut.config import ModelConfig
from moeut.interop.training_code import training_code_config, training_code_maps

MOEUT: dict[str, Any] = {
    "transformer.variant": "preln_moe_universal",
    "transformer.encoder_n_layers": 4,
    "transformer.universal.group_size": 2,
    "transformer.n_heads": 2,
    "transformer.head_projection_size": 6,
    "state_size": 16,
    "pkm.n_heads": 2,
    "moe.n_experts": 4,
    "moe.expert_size": 8,
    "moe.nonorm": 1,
    "moe.perplexity_reg": 0.01,
    "moe.perplexity_reg_mode": "layers_time",
    "moe.att.enable": 1,
    "moe.att.n_experts": 3,
    "moe.att.q_expert": 0,
    "moe.att.k_expert": 0,
}


def read(**changes: Any) -> ModelConfig:
    options = MOEUT | {name.replace("__", "."): value for name, value in changes.items()}
    return training_code_config(options, vocabulary_size=20)


def test_strings_are_read_as_the_code_reads_them() -> None:
    as_text = {name: str(value) for name, value in MOEUT.items()}
    assert training_code_config(as_text, vocabulary_size=20) == read()
    assert read(transformer__head_projection_size="none").attention.head_size == 8


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"transformer__variant": "moe_universal", "moe__nonorm": 0}, lambda c: c.norm == "post"),
        ({"transformer__variant": "preln_moe"}, lambda c: c.depth.group == 4),
        ({"moe__nonorm": 0}, lambda c: c.norm == "pre"),
        ({"transformer__universal__group_type": "aabb"}, lambda c: c.depth.order == "sequence"),
        ({"moe__selection_mode": "gate"}, lambda c: c.feed_forward.router == "softmax"),
        ({"moe__att__perplexity_reg": "0.5"}, lambda c: c.attention.balance_loss == 0.5),
        ({}, lambda c: c.attention.balance_loss == 0.01),
        ({"moe__drop_expert": 0.1}, lambda c: c.attention.expert_dropout == 0.1),
        ({"moe__att__drop_expert": 0.2}, lambda c: c.attention.expert_dropout == 0.2),
        ({"rope__rotate_fraction": 0}, lambda c: isinstance(c.position, NoPosition)),
        ({"moe__att__k": 1}, lambda c: isinstance(c.attention, SwitchHead)),
        (
            {"moe__att__n_experts": 1, "moe__att__k": 1},
            lambda c: c.attention.gates == "value_and_output",
        ),
        (
            {"moe__att__enable": 0, "moe__nonorm": 0},
            lambda c: (
                c.attention.to_dict() | {"kind": "dense", "num_heads": 2, "head_size": 6}
                == c.attention.to_dict()
            ),
        ),
    ],
)
def test_options_make_the_stack(changes: dict[str, Any], check: Any) -> None:
    assert check(read(**changes))


def test_embedding_scale() -> None:
    assert read().embedding_scale == "none"
    post = {"transformer__variant": "moe_universal", "moe__nonorm": 0}
    assert read(**post).embedding_scale == "sqrt_d_model"
    assert read(**post, transformer__embedding_scale=1.0).embedding_scale == "none"
    assert read(transformer__embedding_scale=4.0).embedding_scale == "sqrt_d_model"
    with pytest.raises(ValueError, match=r"transformer\.embedding_scale=3\.0"):
        read(transformer__embedding_scale="3.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer__variant": "preln_moe_universl"}, r"did you mean 'preln_moe_universal'"),
        ({"transformer__activation": "gelu"}, r"transformer\.activation='gelu'"),
        ({"embedding_size": "128"}, r"embedding_size=128: only None is supported"),
        ({"dropout": "0.1"}, r"dropout=0\.1: only 0\.0 is supported"),
        ({"lm__trafo__context_blocks": 1}, r"lm\.trafo\.context_blocks=1"),
        ({"reg": 2}, r"reg=2\.0"),
        ({"reg_scales": {"moe": 2.0}}, r"reg_scales="),
        ({"moe__bias": "1"}, r"moe\.bias=True: only False is supported"),
        ({"moe__att__q_expert": 1}, r"moe\.att\.q_expert=True"),
        ({"moe__att__v_expert": 0}, r"moe\.att\.v_expert=False"),
        ({"moe__att__selection_mode": "softmax"}, r"moe\.att\.selection_mode='softmax'"),
        ({"moe__att__v_size": "7"}, r"moe\.att\.v_size=7"),
        ({"moe__perplexity_reg_mode": "time"}, r"moe\.perplexity_reg_mode='time'"),
        ({"moe__att__perplexity_reg_mode": "time"}, r"moe\.att\.perplexity_reg_mode='time'"),
        ({"transformer__variant": "moe_universal"}, r"moe\.nonorm=True"),
        ({"transformer__n_heads": "two"}, r"transformer\.n_heads='two': expected a number"),
        ({"moe__n_experts": 2.5}, r"moe\.n_experts=2\.5: expected a whole number"),
        ({"moe__nonorm": "maybe"}, r"moe\.nonorm='maybe': expected true or false"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_what_the_default_does_not_support_is_named() -> None:
    options = {name: value for name, value in MOEUT.items() if name != "moe.att.k_expert"}
    with pytest.raises(ValueError, match=r"moe\.att\.k_expert=True: .*left out: True"):
        training_code_config(options, vocabulary_size=20)
    with pytest.raises(ValueError, match=r"transformer\.variant: missing option"):
        training_code_config({}, vocabulary_size=20)


def test_import_keeps_dtype_and_random_state() -> None:
    model = moeut.build(read()).to(torch.bfloat16)
    ours = model.state_dict()
    theirs = {one.theirs: ours[one.ours[0]] for one in training_code_maps(model.config)}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = moeut.from_training_code(MOEUT, theirs)
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in again.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, model.state_dict()[name])
