"""Muon: what it does to a matrix, to each expert by itself, and which parameters it takes."""

import pytest
import torch

import moeut
from moeut.architectures import ARCHITECTURES
from runners.config.schema import TrainConfig
from runners.training.muon import (
    COEFFICIENTS,
    MOMENTUM,
    StackedMuon,
    matrices_of_layers,
    orthogonalized,
)
from runners.training.optimization import build_optimizer, set_rate

SHAPES = [(3, 5, 9), (3, 9, 5), (2, 8, 8)]


def polynomial(singular):
    a, b, c = COEFFICIENTS
    for _ in range(5):
        singular = a * singular + b * singular**3 + c * singular**5
    return singular


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_singular_values_change(shape):
    """By five times the polynomial a s + b s³ + c s⁵, once the norm is 1; all end near 1."""
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()
    left, singular, right = torch.linalg.svd(matrices, full_matrices=False)
    brought = polynomial(singular / singular.norm(dim=-1, keepdim=True))
    expected = left @ torch.diag_embed(brought) @ right
    found = orthogonalized(matrices, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert ((brought > 0.5) & (brought < 1.3)).all()


@pytest.mark.parametrize("shape", [shape[1:] for shape in SHAPES])
def test_one_matrix_is_orthogonalized_to_the_bits_of_torch(shape):
    gradient = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    parameter = torch.nn.Parameter(torch.zeros(*shape))
    parameter.grad = gradient
    options = {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.0, "nesterov": False}
    torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, **options).step()
    factor = 0.2 * max(shape) ** 0.5
    assert torch.equal(parameter.detach(), orthogonalized(gradient).float() * -factor)


def updates(make, stack, gradients):
    """Return a stack after several updates at a falling rate."""
    optimizer = make([stack])
    for rate, gradient in zip((0.1, 0.05, 0.02), gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        stack.grad = gradient
        optimizer.step()
    return stack.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_each_matrix_of_a_stack_moves_as_torch_moves_it(shape):
    """Within what bfloat16 loses: the same products, in another order."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(*shape, generator=generator)
    gradients = torch.randn(3, *shape, generator=generator)

    def stacked(parameters):
        return StackedMuon([{"params": parameters}], lr=0.1, weight_decay=0.3)

    def single(parameters):
        options = {"adjust_lr_fn": "match_rms_adamw", "momentum": MOMENTUM}
        return torch.optim.Muon(parameters, lr=0.1, weight_decay=0.3, **options)

    found = updates(stacked, torch.nn.Parameter(start.clone()), gradients)
    expected = torch.stack(
        [
            updates(single, torch.nn.Parameter(start[n].clone()), gradients[:, n])
            for n in range(len(start))
        ]
    )
    moved = (expected - start).abs().max()
    assert (found - expected).abs().max() < 0.01 * moved
    # All experts as one tall matrix is another update.
    tall = torch.nn.Parameter(start.flatten(0, 1).clone())
    other = updates(single, tall, gradients.flatten(1, 2)).view_as(start)
    assert (other - expected).abs().max() > 0.1 * moved


def test_weights_without_a_gradient_stay():
    stack = torch.nn.Parameter(torch.ones(2, 3, 4))
    optimizer = StackedMuon([{"params": [stack]}], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(stack, torch.ones(2, 3, 4))
    assert not optimizer.state


def model_of(architecture, form="decoder_lm", **options):
    blueprint = moeut.blueprint({"architecture": architecture, **options})
    sizes = {"num_classes": 3} if form == "encoder_labeller" else {}
    with torch.device("meta"):
        config = moeut.configure(blueprint, form=form, vocabulary_size=11, **sizes)
        return moeut.models.FORMS[form](config)


def taken(model):
    """Return the names, inside a layer, of what Muon takes."""
    matrices = matrices_of_layers(model)
    names = {name for name, parameter in model.named_parameters() if parameter in matrices}
    assert all(".layers." in name for name in names)
    return {name.partition(".layers.")[2].partition(".")[2] for name in names}


DENSE = {f"attention.{name}.weight" for name in ("query", "key", "value", "output")}
FEED_FORWARD = {"feed_forward.up.weight", "feed_forward.down.weight"}
EXPERTS = {"feed_forward.up", "feed_forward.down"}
QUERY_KEY = {"attention.query.weight", "attention.key.weight"}


@pytest.mark.parametrize(
    ("architecture", "options", "expected"),
    [
        ("transformer", {}, DENSE | FEED_FORWARD),
        ("huginn", {}, DENSE | FEED_FORWARD | {"feed_forward.gate.weight"}),
        ("ndr", {}, DENSE | FEED_FORWARD),  # without direction and copy gate
        ("sigma_moe", {}, DENSE | EXPERTS),  # without gates of heads
        ("moeut", {}, QUERY_KEY | EXPERTS | {"attention.value", "attention.output"}),
        (
            "sut",
            {},
            {"attention.key.weight", "attention.value.weight"}
            | {"attention.query", "attention.output"}
            | EXPERTS,
        ),
        ("relaxed_recursive", {}, DENSE | FEED_FORWARD | {"feed_forward.gate.weight"}),
        (
            "transformer",
            {"position": {"kind": "relative"}},
            DENSE | FEED_FORWARD | {"attention.relative.projection.weight"},
        ),
        ("transformer", {"position": {"kind": "fire"}}, DENSE | FEED_FORWARD),
        ("transformer", {"feed_forward": {"kind": "convolutional"}}, DENSE),
    ],
)
def test_muon_takes_the_matrices_of_layers(architecture, options, expected):
    assert taken(model_of(architecture, **options)) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_muon_takes_two_or_three_dimensions_and_leaves_the_rest(architecture):
    form = "encoder_labeller" if architecture in ("trm", "hrm", "urm") else "decoder_lm"
    digits = {"input_position": {"digits": list(range(10))}} if architecture == "abacus" else {}
    model = model_of(architecture, form, **digits)
    matrices = matrices_of_layers(model)
    assert matrices
    assert {parameter.dim() for parameter in matrices} <= {2, 3}
    left = ("norm", "bias", "router", "gate.", "embedding", "head.", "halt", "injection", "adapter")
    for name, parameter in model.named_parameters():
        if any(word in f"{name}." for word in left) and "feed_forward.gate" not in name:
            assert parameter not in matrices, name


def test_all_parameters_are_updated_once_and_a_step_is_as_long_as_adamw_s():
    blueprint = moeut.blueprint({"architecture": "moeut", "d_model": 32})
    config = moeut.configure(blueprint, form="decoder_lm", vocabulary_size=11)
    torch.manual_seed(0)
    model = moeut.build(config)
    optimizer = build_optimizer(model, TrainConfig(optimizer="muon", learning_rate=0.01))
    groups = optimizer.param_groups
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(model.parameters())
    assert set(optimizer.optimizers) == {"muon", "stacked_muon", "adamw"}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    matrices = matrices_of_layers(model)
    for _ in range(5):
        for parameter in listed:
            parameter.grad = torch.randn_like(parameter)
        set_rate(optimizer, 0.01)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        length = (parameter - before[name]).square().mean().sqrt() / 0.01
        if parameter in matrices:  # 0.2 of a full step each time, in directions that vary
            assert 0.1 < length < 1.0, name
        else:
            assert 0.2 < length < 5.0, name
