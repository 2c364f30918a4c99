"""Constructor arguments of the release, and what they make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import moeut
from moeut.blocks.attention import DenseAttention, SwitchHead
from moeut.interop.release import release_config, release_maps

ARGUMENTS: dict[str, Any] = {
    "n_tokens": 20,
    "d_model": 16,
    "n_layers": 4,
    "n_heads": 2,
    "ff_n_experts": 9,
    "att_n_experts": 3,
}


def test_defaults_are_those_of_the_constructor() -> None:
    stack = release_config(ARGUMENTS).stacks["decoder"]
    assert stack.depth.group == 2
    assert stack.norm == "peri"
    assert stack.attention == SwitchHead(
        num_heads=2,
        num_key_heads=2,
        head_size=8,
        num_experts=3,
        top_k=2,
        renormalise_experts=False,
        dropout=0.0,
    )
    experts = stack.feed_forward
    assert (experts.expert_size, experts.top_k, experts.balance_loss) == (128, 8, 0.01)
    assert experts.renormalise_router


def test_one_attention_expert_is_dense_with_an_output_gate() -> None:
    attention = release_config(ARGUMENTS | {"att_n_experts": 1}).attention
    sizes = {"num_heads": 2, "num_key_heads": 2, "head_size": 8, "value_head_size": 8}
    assert attention == DenseAttention(gates="output", dropout=0.0, **sizes)


def test_layers_beyond_the_last_full_group_do_not_exist() -> None:
    assert release_config(ARGUMENTS | {"n_layers": 5}).depth.num_applications == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_heads": 4}, r"d_heads=4: not an argument .* did you mean 'd_head'"),
        ({"dropout": 0.1}, r"dropout=0\.1: only 0\.0 is supported"),
        ({"n_layers": 1}, r"n_layers=1: expected at least group_size=2"),
        ({"ff_k": 10}, r"top_k=10: must be at most num_experts=9"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        release_config(ARGUMENTS | changes)


@pytest.mark.parametrize("missing", ["n_tokens", "ff_n_experts"])
def test_required_arguments(missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing}: missing option of the MoEUT release"):
        release_config({name: value for name, value in ARGUMENTS.items() if name != missing})


def test_import_fills_every_weight() -> None:
    arguments = ARGUMENTS | {"ff_expert_size": 8, "att_entropy_reg": 0.3}
    model = moeut.build(release_config(arguments))
    ours = model.state_dict()
    theirs = {one.theirs: ours[one.ours[0]] for one in release_maps(model.config)}
    again = moeut.from_release(arguments, theirs)
    assert again.config == model.config
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
