"""The gated feed-forward and the activations are their formulas."""

import math

import pytest
import torch

from moeut.blocks.feed_forward import DenseFeedForward, GatedFeedForward
from moeut.blocks.feed_forward.activations import ACTIVATION
from moeut.blocks.routing import RoutingContext

D, F = 6, 7
FORMULAS = {
    "relu": lambda x: x * (x > 0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "squared_relu": lambda x: x**2 * (x > 0),
    "half_squared_relu": lambda x: x**2 * (x > 0) / 2,
}


def make_module(options):
    torch.manual_seed(0)
    module = options.within(dropout=0.0).build(D).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def make_views():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 5, D, generator=generator, dtype=torch.float64).unbind(0)


def test_every_activation_has_a_formula_here():
    assert ACTIVATION.keys() == FORMULAS.keys()


@pytest.mark.parametrize("activation", FORMULAS)
@pytest.mark.parametrize("bias", [True, False])
def test_gated_reads_the_plain_view(activation, bias):
    module = make_module(GatedFeedForward(hidden_size=F, bias=bias, activation=activation))
    routed, plain = make_views()

    def layer(name, x):
        part = getattr(module, name)
        return x @ part.weight.T + (part.bias if bias else 0)

    gate = FORMULAS[activation](layer("gate", plain))
    wanted = layer("down", gate * layer("up", plain))
    output, record = module(routed, plain, RoutingContext())
    assert record is None
    assert (output - wanted).abs().max() < 1e-12
    assert torch.autograd.gradcheck(
        lambda x: module(routed, x, RoutingContext())[0], plain[:1, :2].requires_grad_()
    )


@pytest.mark.parametrize("activation", FORMULAS)
def test_dense_has_the_activation(activation):
    module = make_module(DenseFeedForward(hidden_size=F, activation=activation))
    _, plain = make_views()
    wanted = module.down(FORMULAS[activation](module.up(plain)))
    assert (module(plain, plain, RoutingContext())[0] - wanted).abs().max() < 1e-12
