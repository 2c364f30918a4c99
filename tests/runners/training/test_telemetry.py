"""The log's figures against hand-made ones, and that looking changes no training."""

import functools
import math

import numpy as np
import pytest
import torch

import moeut
from moeut import sizing
from runners.process.generators import seed_everything
from runners.process.run_directory import RunDirectory
from runners.training import telemetry
from runners.training.experiment import build
from runners.training.lengths import train_columns
from runners.training.loop import Loop

CPU = torch.device("cpu")


def test_utilization_of_a_known_device():
    assert telemetry.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert telemetry.peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert telemetry.peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 19.5e12
    assert telemetry.peak_flops("NVIDIA L4", "bfloat16") == 121e12
    assert telemetry.peak_flops("NVIDIA RTX A4000", "bfloat16") is None
    assert telemetry.peak_flops("AMD EPYC 9654", "bfloat16") is None
    # 1e6 tokens/s · 1e8 MACs · 2 operations · 3 passes = 6e14 a second
    share = telemetry.model_flops_utilization(1e6, macs_per_token=10**8, peak=989e12)
    assert share == pytest.approx(6 / 9.89)
    assert telemetry.model_flops_utilization(1e6, macs_per_token=10**8, peak=None) is None


def test_speed_of_known_seconds_and_tokens():
    entry = telemetry.speed(8.0, 4000, macs_per_token=1000, peak=1e9, device=CPU)
    assert entry["tokens_per_second"] == 500.0
    assert entry["model_flops_utilization"] == pytest.approx(6 * 1000 * 500 / 1e9)
    assert entry["peak_memory_bytes"] > 2**20


def test_count_of_choices():
    selection = torch.tensor([[[[0, 2], [1, 1]], [[2, 0], [1, -1]]]])  # (1, 2 tokens, 2 heads, 2)
    assert telemetry._count(selection, 4).tolist() == [[2, 0, 2, 0], [0, 3, 0, 0]]
    found = telemetry._describe(telemetry._count(selection, 4).double())
    assert found["dead_experts"] == 5
    assert found["num_experts"] == 8
    assert found["entropy"] == pytest.approx(math.log(2) / 2)  # ln 2 and 0


@pytest.fixture
def make_loop(make_run):
    def make(form="decoder_lm", architecture="moeut"):
        balance = () if architecture == "transformer" else ("model.feed_forward.balance_loss=0.5",)
        directory = make_run("loop", *balance, form=form, architecture=architecture)
        config = RunDirectory(directory).read_config()
        built = build(config)
        seed_everything(0)
        return Loop(
            config.train,
            objective=built.objective,
            model=moeut.build(built.model_config),
            columns=train_columns(built.objective),
            seed=0,
            d_model=16,
            device=CPU,
        )

    return make


def usage(loop):
    return telemetry.expert_usage(loop.model, loop.objective, loop.columns, loop.rows, device=CPU)


def test_usage_is_that_of_all_applications(make_loop):
    loop = make_loop()
    loop.advance()
    found = usage(loop)
    layers = range(loop.model.config.depth.num_distinct)
    assert {name.split(".", 2)[2] for name in found} >= {"feed_forward", "attention.value"}
    assert len([name for name in found if name.endswith("feed_forward")]) == len(layers)
    loop.model.eval()
    chosen = []
    for row in loop.rows[: telemetry.ROUTING_ROWS]:
        batch = loop.columns.batch(np.array([row]), device=CPU)
        call = functools.partial(loop.model, trace=True)
        records = loop.objective.forward(call, batch).trace["decoder"]
        schedule = loop.model.decoder.schedule()
        chosen += [
            each.routers["feed_forward"].selection.flatten()
            for layer, each in zip(schedule, records, strict=True)
            if layer == 0
        ]
    numbers = torch.cat(chosen)
    counts = torch.bincount(numbers[numbers >= 0], minlength=4).double()
    share = counts / counts.sum()
    entry = found["decoder.0.feed_forward"]
    assert entry["num_experts"] == 4
    assert entry["dead_experts"] == int((counts == 0).sum())
    assert entry["entropy"] == pytest.approx(float(-(share * share.clamp_min(1e-9).log()).sum()))


@pytest.mark.parametrize(
    ("form", "architecture", "stacks"),
    [
        ("encoder_decoder", "moeut", {"encoder", "decoder"}),
        ("encoder_classifier", "sigma_moe", {"encoder"}),
        ("decoder_lm", "transformer", set()),
    ],
)
def test_usage_of_every_form(form, architecture, stacks, make_loop):
    loop = make_loop(form, architecture)
    loop.advance()
    assert {name.split(".")[0] for name in usage(loop)} == stacks


def test_looking_changes_no_bit_of_training(make_loop):
    weights = []
    for looks in (False, True):
        loop = make_loop()
        for _ in range(3):
            loop.advance()
            if looks:
                usage(loop)
                assert loop.model.training
        weights.append({name: value.clone() for name, value in loop.model.state_dict().items()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_macs_are_those_of_the_forward_pass(monkeypatch):
    """6 · MACs a token is what PyTorch's own counter finds for forward and backward, but for the
    logits and weighted sums of attention, which it does not see on a CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    config = moeut.architecture(
        "transformer", form="decoder_lm", vocabulary_size=32, d_model=16,
        depth={"group": 3}, attention={"num_heads": 2}, feed_forward={"hidden_size": 24},
    )  # fmt: skip
    # Which counts no operations of ours.
    monkeypatch.setattr("moeut.ops.native.why_not", lambda: "PyTorch counts")
    model = moeut.build(config)
    tokens = torch.randint(0, 32, (2, 10))
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    macs = sizing.macs_per_token(config, sequence_length=10)
    attention = 3 * 2 * 16 * 10
    assert counter.get_total_flops() == 6 * (macs - attention) * tokens.numel()
