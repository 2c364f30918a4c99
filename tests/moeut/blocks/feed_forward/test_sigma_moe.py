"""σ-MoE is its formula; padding and dropped experts cost nothing."""

import pytest
import torch

from moeut.blocks.feed_forward import SigmaMoE
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


def _sigma_moe(module, routed, plain, options):
    output = torch.zeros_like(plain)
    for b in range(plain.shape[0]):
        for t in range(plain.shape[1]):
            logits = module.router @ routed[b, t]
            gates = logits.sigmoid() if options.router == "sigmoid" else logits.softmax(0)
            for e in logits.argsort(descending=True)[: options.top_k].tolist():
                output[b, t] += gates[e] * ((plain[b, t] @ module.up[e]).relu() @ module.down[e])
    return output


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
def test_sigma_moe_is_its_formula(router):
    options = SigmaMoE(num_experts=5, expert_size=4, top_k=2, router=router)
    module = _module(options)
    routed, plain = _views()
    output, record = module(routed, plain, RoutingContext())
    assert record is None
    assert (output - _sigma_moe(module, routed, plain, options)).abs().max() < 1e-12
    assert (output - _sigma_moe(module, plain, routed, options)).abs().max() > 0.1


def test_padding_is_not_worked_on():
    module = _module(SigmaMoE(num_experts=5, expert_size=4, top_k=2))
    routed, plain = _views()
    real = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    every, _ = module(routed, plain, RoutingContext())
    some, _ = module(routed, plain, RoutingContext(real=real))
    assert torch.allclose(every[real], some[real], rtol=0, atol=1e-14)
    assert (some[~real] == 0).all()


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
@pytest.mark.parametrize("drop", [0.3, 0.9])
def test_expert_dropout_is_finite_and_for_training_only(router, drop):
    options = {"num_experts": 4, "expert_size": 4, "top_k": 3, "router": router}
    module = _module(SigmaMoE(**options, expert_dropout=drop))
    routed, plain = _views()
    wanted, _ = _module(SigmaMoE(**options))(routed, plain, RoutingContext())
    assert torch.equal(module.eval()(routed, plain, RoutingContext())[0], wanted)
    output, _ = module.train()(routed, plain, RoutingContext())
    assert not torch.allclose(output, wanted)
    output.square().sum().backward()
    assert output.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
