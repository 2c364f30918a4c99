"""The paper's models: parameter counts to the last one, and the compute its figures show."""

import pytest
import torch

from moeut.config import SwitchHead
from moeut.models import build
from moeut.presets import PRESETS
from moeut.sizing import count_parameters, paper_macs_per_token

PARAMETERS = {
    "moeut-44m": 44345792,
    "moeut-126m": 125669696,
    "moeut-244m": 243326784,
    "moeut-319m": 318107456,
    "moeut-728m": 727424320,
    "moeut-1b": 1040319296,
    "transformer-44m": 44544264,
    "transformer-126m": 125654336,
    "transformer-244m": 243568700,
    "transformer-319m": 319293584,
    "transformer-728m": 728694080,
    "transformer-1b": 1044300608,
}

# Millions of multiply-accumulates per token at length 1024, from the paper's own script.
MEGA_MACS = {
    "transformer-44m": 51.3,
    "transformer-126m": 138.4,
    "transformer-244m": 264.8,
    "transformer-319m": 353.0,
    "transformer-728m": 802.2,
    "transformer-1b": 1132.5,
    "moeut-44m": 45.1,
    "moeut-126m": 92.3,
    "moeut-244m": 158.5,
    "moeut-319m": 210.2,
    "moeut-728m": 482.9,
    "moeut-1b": 683.8,
}

# Multiply-accumulates of a whole run: 100,000 steps of 64 sequences of 1024 tokens.
RUN_MACS = {
    "sigma_moe-44m": 2.61e17,
    "sigma_moe-126m": 5.13e17,
    "sigma_moe-244m": 8.71e17,
    "sigma_moe-319m": 1.16e18,
    "sigma_moe-728m": 2.65e18,
}


@pytest.mark.parametrize("name", PRESETS)
def test_built_model_has_the_counted_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build(PRESETS[name])
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == count_parameters(PRESETS[name])
    if name in PARAMETERS:
        assert built == PARAMETERS[name]


def test_every_published_size_is_there() -> None:
    assert set(PARAMETERS) | set(RUN_MACS) == set(PRESETS)


@pytest.mark.parametrize("name", MEGA_MACS)
def test_compute_per_token_is_the_papers(name: str) -> None:
    macs = paper_macs_per_token(PRESETS[name], sequence_length=1024)
    assert round(macs / 1e6, 1) == MEGA_MACS[name]


@pytest.mark.parametrize("name", RUN_MACS)
def test_compute_of_a_run_is_the_papers(name: str) -> None:
    macs = paper_macs_per_token(PRESETS[name], sequence_length=1024) * 1024 * 64 * 100_000
    assert macs == pytest.approx(RUN_MACS[name], rel=4e-3)


@pytest.mark.parametrize("size", ["44m", "126m", "244m", "319m", "728m", "1b"])
def test_matching_parameters_finds_the_papers_sizes(size: str) -> None:
    dense, moeut = PRESETS[f"transformer-{size}"], PRESETS[f"moeut-{size}"]
    budget = PARAMETERS[f"transformer-{size}"]
    matched = moeut.match_parameters(budget)
    # The paper rounded by hand: at most three of its hundreds of experts away.
    assert matched.decoder.feed_forward.num_experts == pytest.approx(
        moeut.decoder.feed_forward.num_experts, abs=3
    )
    assert abs(count_parameters(matched) - budget) <= abs(PARAMETERS[f"moeut-{size}"] - budget)
    assert count_parameters(dense.match_parameters(budget)) == budget
    if f"sigma_moe-{size}" in PRESETS:
        sigma_moe = PRESETS[f"sigma_moe-{size}"]
        assert sigma_moe.match_parameters(budget) == sigma_moe


def test_only_the_smallest_leaves_attention_experts_as_drawn() -> None:
    for name, config in PRESETS.items():
        attention = config.decoder.attention
        if isinstance(attention, SwitchHead):
            assert attention.renormalise_experts == (name != "moeut-44m")
