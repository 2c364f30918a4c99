"""Analytic counts equal what a built model has and does."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import moeut.ops.grouped  # noqa: F401
from moeut import architecture
from moeut.architectures import ARCHITECTURES
from moeut.config import ModelConfig
from moeut.models import build
from moeut.sizing import (
    cache_bytes_per_token,
    count_parameters,
    count_used_parameters,
    cut_macs_per_token,
    macs_per_token,
    match_parameters,
    training_flops_per_token,
)

FORMS: dict[str, dict[str, Any]] = {
    "decoder_lm": {},
    "encoder_decoder": {"source_vocabulary_size": 13},
    "encoder_classifier": {"num_classes": 5},
    "encoder_labeller": {"num_classes": 5},
}
NAMES = ["transformer", "universal", "moeut", "sigma_moe", "ndr", "ndr_gate"]


def random_config(seed: int) -> ModelConfig:
    """Any form, position and norm, in odd sizes."""
    draw = random.Random(seed)
    name, form = draw.choice(NAMES), draw.choice(list(FORMS))
    repeats = draw.choice([1, 2])
    attention: dict[str, Any] = {
        "num_heads": draw.choice([1, 3]),
        "head_size": draw.choice([4, 7]),
    }
    kind = draw.choice(["dense", "switch_head", "geometric"])
    if kind != "switch_head":
        attention["gates"] = draw.choice(["none", "output", "value_and_output"])
    else:
        attention |= {"num_experts": draw.choice([2, 3])}
    if ARCHITECTURES[name]()["feed_forward"]["kind"] == "dense":
        feed_forward = {"hidden_size": 9, "bias": draw.random() < 0.5}
    else:
        feed_forward = {"num_experts": draw.choice([4, 7]), "expert_size": 5, "top_k": 3}
    positions = ["sinusoidal", "learned", "none"]
    positions += [] if kind == "geometric" else ["rotary", "relative"]
    options: dict[str, Any] = {
        "d_model": draw.choice([6, 12]),
        "depth": {"prelude": draw.choice([0, 1]), "group": 2, "repeats": repeats},
        "attention": {"kind": kind, **attention},
        "feed_forward": feed_forward,
        "position": draw.choice(positions),
        "norm": draw.choice(["pre", "post", "peri"]),
        "tie_embeddings": not form.startswith("encoder_c")
        and "labeller" not in form
        and draw.random() < 0.5,
    }
    if form == "encoder_decoder":
        options["encoder_depth"] = {"repeats": 3}
    return architecture(name, form=form, vocabulary_size=11, **FORMS[form], **options)


@pytest.mark.parametrize("seed", range(40))
def test_matching_finds_the_nearest_width(seed: int) -> None:
    config = random_config(seed)
    base = count_parameters(config)
    feed_forward = config.feed_forward
    width = "num_experts" if hasattr(feed_forward, "num_experts") else "hidden_size"
    step = count_parameters(match_parameters(config, 10**7))
    assert abs(step - 10**7) < 10**5
    for budget in (base, base + 17, base + 1000, base + 54321):
        matched = match_parameters(config, budget)
        difference = abs(count_parameters(matched) - budget)
        chosen = getattr(matched.feed_forward, width)
        for other in (chosen - 1, chosen + 1):
            if other >= getattr(feed_forward, "top_k", 1):
                neighbour = with_width(matched, width, other)
                assert difference <= abs(count_parameters(neighbour) - budget)
    assert match_parameters(config, base) == config


def with_width(config: ModelConfig, name: str, width: int) -> ModelConfig:
    data = config.to_dict()
    data["feed_forward"][name] = width
    return ModelConfig.from_dict(data)


def test_matching_refuses_what_no_width_reaches() -> None:
    config = random_config(0)
    with pytest.raises(ValueError, match="match_parameters=10: the smallest feed-forward"):
        match_parameters(config, 10)


# PyTorch counts the operations of every matrix product it runs; two per multiply-accumulate.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformer", {"position": "sinusoidal"}),
        ("transformer", {"position": "rotary", "attention": {"num_heads": 3, "head_size": 7}}),
        ("transformer", {"attention": {"head_size": 7, "value_head_size": 4, "num_key_heads": 2}}),
        ("universal", {"position": "learned", "norm": "post"}),
        ("universal", {"position": "none", "attention": {"kind": "geometric", "gates": "output"}}),
        ("universal", {"feed_forward": {"kind": "gated", "short_convolution": 2}}),
        ("universal", {"feed_forward": {"kind": "convolutional", "hidden_size": 20}}),
        ("universal", {"attention": {"num_key_heads": 2, "bias": "all", "gates": "value"}}),
        ("universal", {"position": {"kind": "clipped", "max_distance": 3}}),
        ("ndr", {}),
        ("ndr", {"update": {"gate": "scalar", "hidden_multiple": 3}}),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_dense_macs_are_those_that_run(name: str, options: dict[str, Any], form: str) -> None:
    config = architecture(name, form=form, vocabulary_size=11, d_model=24, **FORMS[form], **options)
    model = build(config).double().eval()  # whose products no kernel of our own hides
    source, target = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)
    inputs = (source, target) if form == "encoder_decoder" else (source,)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs, trace=True)  # traced attention is plain matrix products
    tokens = sum(x.numel() for x in inputs)
    counted = counter.get_total_flops() / 2 / tokens
    ours = macs_per_token(config, sequence_length=9, target_length=5)
    assert ours == pytest.approx(counted, abs=1)


# What makes every token take part in every repeat, and leaves out what a whole batch shares.
TO_THE_END: dict[str, dict[str, Any]] = {
    "abacus": {
        "input_position": {"kind": "abacus", "digits": [1, 2, 3]},
        "position": "none",
    },
    "ndr_gate": {"position": "rotary"},
    "ouro": {"halting": {"kind": "exit_gate", "threshold": 0.999}},
    "mor_expert": {
        "halting": {"kind": "expert_choice", "capacity": [1.0, 1.0, 1.0], "evaluate": "top_k"}
    },
    "mor_token": {"halting": {"kind": "token_choice", "balancing": "bias"}},
}


def of_slots(slots: Any, weight: Any, *others: Any) -> int:
    """Return the operations of a product of each slot with an expert's matrix (E, in, out)."""
    return 2 * slots[0] * weight[1] * weight[2]


OF_EXPERTS = {
    torch.ops.moeut.grouped_linear: lambda x, weight, order, *rest, **options: of_slots(
        order, weight
    ),
    torch.ops.moeut.grouped_mlp: lambda x, up, down, order, *rest, **options: (
        of_slots(order, up) + of_slots(order, down)
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_macs_of_a_named_architecture_are_those_that_run(name: str) -> None:
    """Every cycle of a recursion, and every pass that an answer takes, included."""
    config = architecture(
        name,
        form="encoder_labeller",
        vocabulary_size=11,
        num_classes=5,
        d_model=32,
        **TO_THE_END.get(name, {}),
    )
    model = build(config).double().eval()
    halting = dict(model.encoder.controllers.items()).get("halting")
    if getattr(halting, "bias", None) is not None:
        with torch.no_grad():  # nobody halts; who chooses a depth chooses the last
            halting.bias.fill_(-20.0)
            if len(halting.bias) > 1:
                halting.bias[-1] = 20.0
    source = torch.randint(0, 11, (2, 9))
    with (
        FlopCounterMode(display=False, custom_mapping=OF_EXPERTS) as counter,
        torch.no_grad(),
    ):
        model(source, trace=True)
    counted = counter.get_total_flops() / 2 / source.numel()
    assert macs_per_token(config, sequence_length=9, everyone=True) == pytest.approx(counted, abs=1)


@pytest.mark.parametrize("name", ["trm", "hrm", "urm"])
def test_a_recursion_learns_by_its_last_updates_alone(name: str) -> None:
    config = architecture(
        name, form="encoder_labeller", vocabulary_size=11, num_classes=5, d_model=32
    )
    model = build(config).double().train()
    source = torch.randint(0, 11, (2, 9))
    with FlopCounterMode(display=False) as counter:
        output = model(source, trace=True)
        (output.logits.sum() + output.halting.sum()).backward()
    forward = macs_per_token(config, sequence_length=9, passes=1)
    backward = 2 * (forward - cut_macs_per_token(config, sequence_length=9))
    assert forward + backward == pytest.approx(counter.get_total_flops() / 2 / 18, rel=0.01)
    assert macs_per_token(config, sequence_length=9) == pytest.approx(
        config.carry.steps * forward, abs=config.carry.steps
    )


@pytest.mark.parametrize("recursion", ["two_level", "single"])
@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
def test_a_recursion_that_writes_token_by_token_costs_its_cycles(recursion: str, form: str) -> None:
    config = architecture(
        "universal",
        form=form,
        vocabulary_size=11,
        source_vocabulary_size=11 if form == "encoder_decoder" else None,
        d_model=32,
        recursion={"kind": recursion, "low_cycles": 3},
        depth={"group": 2, "repeats": 3},
        position="none",
    )
    model = build(config).double().train()
    lengths = {"sequence_length": 9}
    inputs = [torch.randint(0, 11, (2, 9))]
    if form == "encoder_decoder":
        lengths["target_length"] = 5
        inputs.append(torch.randint(0, 11, (2, 5)))
    with FlopCounterMode(display=False) as counter:
        model(*inputs, trace=True).logits.sum().backward()
    forward = macs_per_token(config, **lengths)
    backward = 2 * (forward - cut_macs_per_token(config, **lengths))
    counted = counter.get_total_flops() / 2 / (2 * sum(lengths.values()))
    assert forward + backward == pytest.approx(counted, rel=0.01)


def test_expert_macs_by_hand() -> None:
    config = architecture(
        "moeut",
        form="decoder_lm",
        vocabulary_size=10,
        d_model=16,
        attention={"num_heads": 2, "head_size": 4, "num_experts": 3, "top_k": 2},
        feed_forward={"num_experts": 6, "expert_size": 8, "top_k": 3},
    )
    size = 2 * 4
    attention = 2 * 16 * size + 2 * 2 * 16 * size + 2 * 16 * 2 * 3 + 2 * size * 7
    feed_forward = 16 * 6 + 3 * 2 * 16 * 8
    assert macs_per_token(config, sequence_length=7) == 4 * (attention + feed_forward) + 16 * 10


def test_macs_of_competing_experts_by_hand() -> None:
    config = architecture(
        "universal",
        form="decoder_lm",
        vocabulary_size=10,
        d_model=16,
        depth={"repeats": 3},
        attention={
            "kind": "mixture_of_attention",
            "num_heads": 2,
            "head_size": 4,
            "num_experts": 3,
            "top_k": 2,
        },
        feed_forward={
            "kind": "softmax_moe",
            "num_experts": 5,
            "expert_size": 8,
            "top_k": 2,
            "router_hidden_size": 6,
        },
        position={"kind": "clipped", "max_distance": 4},
    )
    size, length = 2 * 4, 7
    router = 16 * 16 + 16 * 3
    # Keys and values once, queries and outputs of two experts, whose queries meet all keys.
    attention = 2 * 16 * size + 2 * (2 * 16 * size) + router + 2 * size * (2 * length + 9)
    feed_forward = 2 * 2 * 16 * 8 + 16 * 5 + 6 * (16 + 5)
    wanted = 3 * (attention + feed_forward) + 16 * 10
    assert macs_per_token(config, sequence_length=length) == wanted


def test_the_absolute_gate_costs_its_gates_and_a_score_per_key() -> None:
    with_gate, without = (
        architecture(
            "universal",
            form="decoder_lm",
            vocabulary_size=11,
            d_model=24,
            attention={"num_heads": 3, "head_size": 7},
            position={"kind": "relative", "absolute_gate": gate},
        )
        for gate in (True, False)
    )
    ours, plain = (macs_per_token(config, sequence_length=9) for config in (with_gate, without))
    assert ours - plain == 4 * (24 * 3 + 3 * 7 * 9)


def test_sharing_saves_parameters_and_not_compute() -> None:
    kwargs = {"form": "decoder_lm", "vocabulary_size": 11}
    dense, shared = architecture("transformer", **kwargs), architecture("universal", **kwargs)
    assert count_parameters(shared) < count_parameters(dense)
    assert macs_per_token(shared, sequence_length=8) == macs_per_token(dense, sequence_length=8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformer", {"depth": {"group": 3}}),
        ("universal", {"depth": {"group": 1, "repeats": 4, "prelude": 1}}),
        ("universal", {"attention": {"num_key_heads": 2, "value_head_size": 5}}),
        ("universal", {"feed_forward": {"kind": "convolutional", "hidden_size": 20}}),
        ("universal", {"feed_forward": {"kind": "gated", "short_convolution": 2}}),
        ("universal", {"attention": {"kind": "geometric"}, "position": "none"}),
        ("moeut", {"attention": {"num_heads": 2, "num_experts": 3}}),
        ("sut", {"halting": "none"}),
    ],
)
@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
def test_cache_bytes_are_those_that_a_cache_holds(name, options, form) -> None:
    sizes = {"vocabulary_size": 11, "d_model": 24, **FORMS[form]}
    config = architecture(name, form=form, **sizes, **options)
    model = build(config).eval()
    tokens, cache = torch.zeros(1, 5, dtype=torch.int64), model.new_cache()
    with torch.no_grad():
        if form == "decoder_lm":
            model(tokens, cache=cache)
        else:
            model.decode(tokens, model.encode(tokens), cache=cache)
    stored = [*cache._keys, *cache._values, *(t for each in cache._others.values() for t in each)]
    held = sum(t[:, :, :1].numel() * t.element_size() for t in stored if t is not None)
    assert cache_bytes_per_token(config) == held


def test_used_parameters_by_hand() -> None:
    def count(**options: Any) -> tuple[int, int]:
        config = architecture("universal", form="decoder_lm", vocabulary_size=11, **options)
        return count_parameters(config), count_used_parameters(config)

    one, _ = count(d_model=24, depth={"group": 1, "repeats": 1})
    two, used = count(d_model=24, depth={"group": 2, "repeats": 1})
    assert used == two
    layer = two - one
    assert count(d_model=24, depth={"group": 1, "repeats": 5}) == (one, one + 4 * layer)
    depth = {"group": 2, "repeats": 3, "prelude": 1}
    assert count(d_model=24, depth=depth) == (one + 2 * layer, one + 2 * layer + 4 * layer)
    # What each repeat has for itself is used once.
    own = count(d_model=24, depth={"group": 1, "repeats": 5}, own={"norms": True})
    assert own[1] - own[0] < 4 * layer
    assert own[0] > one


def test_backward_takes_twice_the_forward() -> None:
    config = architecture(
        "universal", form="encoder_classifier", vocabulary_size=11, num_classes=5, d_model=24
    )
    model = build(config).double()
    source = torch.zeros(2, 9, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(source, trace=True).logits.sum().backward()
    macs = macs_per_token(config, sequence_length=9)
    assert training_flops_per_token(macs) == pytest.approx(counter.get_total_flops() / 18, rel=0.01)
