"""Schedules against their formulas, optimisers and clipping against hand-made updates."""

import math
import warnings

import pytest
import torch

import moeut
from runners.config.schema import TrainConfig
from runners.training.optimization import (
    DirectAdam,
    DirectAdamW,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    learning_rate,
    set_rate,
)
from tasks.base.options import OptionError


def rates(**options):
    config = TrainConfig(steps=100, learning_rate=0.5, **options)
    return [learning_rate(config, step, d_model=64) for step in range(1, 101)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "cosine_paper"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule):
    values = rates(schedule=schedule, warmup_steps=10)
    assert values[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(values) == values[9]


def test_shapes_after_the_warm_up():
    assert set(rates(schedule="constant")) == {0.5}
    linear = rates(schedule="linear", warmup_steps=20, final_learning_rate_ratio=0.2)
    assert linear[59] == pytest.approx(0.5 * 0.6)  # half of the way from 1 to 0.2
    assert linear[-1] == pytest.approx(0.1)
    cosine = rates(schedule="cosine", warmup_steps=20, final_learning_rate_ratio=0.0)
    assert cosine[39] == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))
    assert cosine[-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_stable_falls_in_a_line_over_its_last_steps(floor):
    values = rates(
        schedule="stable", warmup_steps=10, decay_steps=20, final_learning_rate_ratio=floor
    )
    assert values[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert set(values[9:80]) == {0.5}
    fall = [0.5 * (floor + (1 - floor) * left / 20) for left in range(19, -1, -1)]
    assert values[80:] == pytest.approx(fall, abs=1e-12)


def test_stable_without_a_plateau_is_linear():
    options = {"warmup_steps": 25, "final_learning_rate_ratio": 0.1}
    stable = rates(schedule="stable", decay_steps=75, **options)
    assert stable == rates(schedule="linear", **options)


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"schedule": "stable"}, "decay_steps", "schedule stable needs it"),
        ({"schedule": "linear", "decay_steps": 5}, "decay_steps", "only under schedule stable"),
        ({"schedule": "stable", "decay_steps": 0}, "decay_steps", "at least 1 and at most"),
        (
            {"schedule": "stable", "decay_steps": 91, "warmup_steps": 10},
            "decay_steps",
            "at most steps - warmup_steps = 90",
        ),
        (
            {"schedule": "stable", "decay_steps": 5, "warmup_steps": 100},
            "warmup_steps",
            "must be below steps=100",
        ),
    ],
)
def test_stable_refuses_a_fall_that_has_no_room(options, field, reason):
    with pytest.raises(OptionError, match=reason) as caught:
        TrainConfig(steps=100, **options)
    assert caught.value.option == field


def test_noam():
    values = rates(schedule="noam", warmup_steps=25)
    assert values[24] == pytest.approx(0.5 / 8 / 5)  # factor / sqrt(64) / sqrt(25)
    assert values[4] == pytest.approx(values[24] / 5)
    assert values[99] == pytest.approx(values[24] / 2)


@pytest.mark.parametrize("warmup", [0, 25])
def test_cosine_of_the_paper_is_the_one_of_torch(warmup):
    """As MoEUT's training code steps it: with the updates done, less those of the warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.05)
    expected = []
    for done in range(100):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an epoch given to step is deprecated
            schedule.step(max(0, done - warmup))
        rate = optimizer.param_groups[0]["lr"]
        expected.append(rate * (done + 1) / warmup if done < warmup else rate)
    found = rates(schedule="cosine_paper", warmup_steps=warmup)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[-1] > 0.05  # it ends before the floor
    assert found != pytest.approx(rates(schedule="cosine", warmup_steps=warmup), rel=1e-4)


def one_update(**options):
    model = torch.nn.ParameterList([torch.tensor([2.0, -3.0])])
    model[0].grad = torch.tensor([0.5, 0.5])
    optimizer = build_optimizer(model, TrainConfig(learning_rate=0.1, **options))
    optimizer.step()
    return model[0].detach().tolist()


def test_adam_and_adamw():
    # The first update of Adam is the sign of the gradient times the learning rate.
    assert one_update(optimizer="adam") == pytest.approx([1.9, -3.1])
    # Decoupled: the weight shrinks by learning rate × decay as well.
    assert one_update(optimizer="adamw", weight_decay=0.5) == pytest.approx([1.8, -2.95])
    # As L2 penalty: gradients are 0.5 + 0.5 · weight = 1.5 and -1.
    assert one_update(optimizer="adam", weight_decay=0.5) == pytest.approx([1.9, -2.9])


def trained(kind, *, resume_as=None, **options):
    """Return weights and states after four updates; one parameter has no gradient in the second."""
    generator = torch.Generator().manual_seed(3)
    sizes = [(4, 3), (5,), (2, 2, 2)]
    model = torch.nn.ParameterList([torch.randn(size, generator=generator) for size in sizes])
    groups = [{"params": list(model)[:2], "scale": 0.5}, {"params": list(model)[2:]}]
    optimizer = kind(groups, lr=0.1, fused=True, **options)
    for update in range(4):
        if update == 3 and resume_as is not None:
            state = optimizer.state_dict()
            optimizer = resume_as(groups, lr=0.9, fused=True)
            optimizer.load_state_dict(state)
        optimizer.zero_grad(set_to_none=True)
        for index, parameter in enumerate(model):
            if (update, index) != (1, 0):
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_rate(optimizer, 0.1 / (update + 1))
        optimizer.step()
    return [parameter.detach() for parameter in model], optimizer.state_dict()


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(DirectAdam, torch.optim.Adam), (DirectAdamW, torch.optim.AdamW)]
)
def test_the_direct_update_is_torchs_bit_for_bit(ours, theirs, decay, resumes):
    options = {"weight_decay": decay, "betas": (0.8, 0.95), "eps": 1e-6}
    weights, state = trained(ours, resume_as=theirs if resumes else None, **options)
    expected, theirs_state = trained(theirs, resume_as=ours if resumes else None, **options)
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert state["param_groups"] == theirs_state["param_groups"]
    for index, entry in theirs_state["state"].items():
        assert entry.keys() == state["state"][index].keys()
        assert all(torch.equal(value, state["state"][index][name]) for name, value in entry.items())
    assert state["state"][0]["step"] == 3


def test_only_whole_float32_parameters_on_a_cpu_are_updated_directly():
    def kind(dtype=torch.float32, device="cpu"):
        model = torch.nn.ParameterList([torch.zeros(2, dtype=dtype, device=device)])
        return type(build_optimizer(model, TrainConfig(optimizer="adamw")))

    assert kind() is DirectAdamW
    assert kind(dtype=torch.float64) is torch.optim.AdamW
    piece = torch.nn.Parameter(torch.zeros(2))
    piece.full_tensor = piece.detach
    model = torch.nn.Module()
    model.piece = piece
    assert type(build_optimizer(model, TrainConfig(optimizer="adam"))) is torch.optim.Adam


def test_clipping_scales_to_the_global_norm():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([0.0, 4.0])
    norm = gradient_norm(parameters)
    assert float(norm) == 5.0
    clip_gradients(parameters, norm=norm, largest=None)
    clip_gradients(parameters, norm=norm, largest=6.0)
    assert parameters[1].grad.tolist() == [0.0, 4.0]
    clip_gradients(parameters, norm=norm, largest=1.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.0], rel=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([0.0, 0.8], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_repeated_layer_has_the_rate_over_the_root_of_its_repeats(optimizer):
    """Outer layers, the embedding and the norms that each repeat has of its own keep it."""
    options = {
        "d_model": 16,
        "attention": {"num_heads": 2},
        "depth": {"prelude": 1, "group": 1, "repeats": 4, "coda": 1},
        "own": {"norms": True},
    }
    blueprint = moeut.blueprint({"architecture": "universal", **options})
    model = moeut.build(moeut.configure(blueprint, form="decoder_lm", vocabulary_size=11))
    built = build_optimizer(model, TrainConfig(optimizer=optimizer, shared_rate="root"))
    set_rate(built, 0.1)
    rates = {p: group["lr"] for group in built.param_groups for p in group["params"]}
    assert set(rates) == set(model.parameters())
    slow = {name for name, p in model.named_parameters() if rates[p] == 0.05}
    fast = {name for name, p in model.named_parameters() if rates[p] == 0.1}
    in_group = {name for name in slow | fast if ".layers.1." in name}
    assert slow | fast == {name for name, _ in model.named_parameters()}
    assert slow
    assert slow == {name for name in in_group if "norm" not in name}
    assert fast & in_group


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_of_the_average_is_below_one(decay):
    with pytest.raises(OptionError) as caught:
        TrainConfig(ema=decay)
    assert caught.value.option == "ema"
