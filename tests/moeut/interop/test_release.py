"""Constructor arguments of the release, and the roundings that models imported from it keep."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import moeut
from moeut.config import DenseAttention, SwitchHead
from moeut.interop import mapping
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
    stack = release_config(ARGUMENTS).decoder
    assert stack.group_size == 2
    assert stack.norm == "peri"
    assert stack.attention == SwitchHead(
        num_heads=2, head_size=8, num_experts=3, top_k=2, renormalise_experts=False
    )
    experts = stack.feed_forward
    assert (experts.expert_size, experts.top_k, experts.balance_loss) == (128, 8, 0.01)
    assert experts.renormalise_router


def test_one_attention_expert_is_dense_with_an_output_gate() -> None:
    stack = release_config(ARGUMENTS | {"att_n_experts": 1}).decoder
    assert stack.attention == DenseAttention(num_heads=2, head_size=8, attention_gates="output")


def test_layers_beyond_the_last_full_group_do_not_exist() -> None:
    assert release_config(ARGUMENTS | {"n_layers": 5}).decoder.num_layers == 4


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


# --- roundings --------------------------------------------------------------------------


def models(dtype: torch.dtype) -> tuple[Any, Any]:
    """The same weights with the release's roundings and without."""
    torch.manual_seed(0)
    config = release_config(ARGUMENTS | {"ff_expert_size": 8, "att_entropy_reg": 0.3})
    rounded = moeut.build(config).to(dtype)
    assert config.decoder is not None
    plain_stack = dataclasses.replace(config.decoder, float32_routing=False)
    plain = moeut.build(dataclasses.replace(config, decoder=plain_stack)).to(dtype)
    plain.load_state_dict(rounded.state_dict())
    return rounded, plain


def test_roundings_change_float64_in_the_eighth_digit_only() -> None:
    rounded, plain = models(torch.float64)
    tokens = torch.randint(20, (2, 9))
    a, b = rounded(tokens), plain(tokens)
    assert 1e-12 < (a.logits - b.logits).abs().max() < 1e-5
    assert a.auxiliary_loss.item() == pytest.approx(b.auxiliary_loss.item(), rel=1e-5)
    assert a.auxiliary_loss.item() != 0.0


def test_roundings_change_nothing_in_float32() -> None:
    rounded, plain = models(torch.float32)
    tokens = torch.randint(20, (2, 9))
    a, b = rounded(tokens), plain(tokens)
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.auxiliary_loss, b.auxiliary_loss)


def test_padding_changes_neither_rounded_loss_nor_gradient() -> None:
    rounded, _ = models(torch.float64)
    tokens = torch.randint(20, (3, 6))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    shorter = rounded(tokens, padding_mask=mask).auxiliary_loss
    shorter.backward()
    gradients = {
        name: p.grad.clone() for name, p in rounded.named_parameters() if p.grad is not None
    }
    rounded.zero_grad()
    wide = torch.nn.functional.pad(tokens, (0, 5), value=7)
    # A row without a real token counts for nothing either.
    wide = torch.cat((wide, wide[:1]))
    wide_mask = torch.nn.functional.pad(mask, (0, 5, 0, 1))
    longer = rounded(wide, padding_mask=wide_mask).auxiliary_loss
    longer.backward()
    assert longer.item() == pytest.approx(shorter.item(), rel=1e-6)
    for name, gradient in gradients.items():
        other = dict(rounded.named_parameters())[name].grad
        assert (other - gradient).abs().max() < 1e-6, name


def test_import_and_export_are_inverse() -> None:
    rounded, _ = models(torch.float64)
    theirs = mapping.to_theirs(release_maps(rounded.config), rounded.state_dict())
    again = moeut.from_release(ARGUMENTS | {"ff_expert_size": 8, "att_entropy_reg": 0.3}, theirs)
    assert again.config == rounded.config
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, rounded.state_dict()[name]), name
