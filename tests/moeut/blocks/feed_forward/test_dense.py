"""The dense feed-forward is its formula."""

import pytest
import torch

from moeut.blocks.feed_forward import DenseFeedForward
from moeut.blocks.routing import RoutingContext

D = 6


def _module(options):
    torch.manual_seed(0)
    module = options.within(dropout=0.0).build(D).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def _views():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 5, D, generator=generator, dtype=torch.float64).unbind(0)


@pytest.mark.parametrize("bias", [True, False])
def test_dense_reads_the_plain_view(bias):
    module = _module(DenseFeedForward(hidden_size=7, bias=bias))
    routed, plain = _views()
    hidden = plain @ module.up.weight.T + (module.up.bias if bias else 0)
    wanted = hidden.relu() @ module.down.weight.T + (module.down.bias if bias else 0)
    output, record = module(routed, plain, RoutingContext())
    assert record is None
    assert (output - wanted).abs().max() < 1e-13


def test_hidden_dropout_is_for_training_only():
    module = _module(DenseFeedForward(hidden_size=7, dropout=0.5))
    routed, plain = _views()
    still = [module.eval()(routed, plain, RoutingContext())[0] for _ in range(2)]
    assert torch.equal(*still)
    moving = [module.train()(routed, plain, RoutingContext())[0] for _ in range(2)]
    assert not torch.equal(*moving)
