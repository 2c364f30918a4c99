"""Each kind of norm against its formula, and every norm of a model is of the kind."""

import pytest
import torch

from moeut.blocks.norms import LayerNorm, Norm, NormOptions, RMSNorm, UnbiasedNorm

KINDS = {"layer": LayerNorm, "rms": RMSNorm, "unbiased": UnbiasedNorm}
EPSILON = 0.3


def formula(kind, x):
    centred = x - x.mean(-1, keepdim=True)
    if kind == "layer":
        return centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt()
    if kind == "rms":
        return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()
    return centred / ((centred.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt() + EPSILON)


def make_norm(kind, **options):
    torch.manual_seed(0)
    norm = NormOptions(kind, EPSILON).build(7, **options).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_its_formula(kind):
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    norm = make_norm(kind)
    wanted = formula(kind, x) * norm.weight + (0 if kind == "rms" else norm.bias)
    assert (norm(x) - wanted).abs().max() < 1e-14
    for other in KINDS.keys() - {kind}:
        assert (formula(other, x) * norm.weight - formula(kind, x) * norm.weight).abs().max() > 0.01
    assert torch.autograd.gradcheck(norm, x)
    bare = make_norm(kind, weights=False)
    assert not list(bare.parameters())
    assert not bare.roles()
    assert (bare(x) - formula(kind, x)).abs().max() < 1e-14


def test_unbiased_norm_of_equal_channels_has_a_gradient():
    x = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    make_norm("unbiased")(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [True, False])
def test_every_norm_of_a_model_is_of_the_kind(make_model, kind, weights):
    model = make_model(
        norm_kind=kind,
        norm_weights=weights,
        norm="sandwich",
        norm_input=True,
        norm_input_weights=True,
    )
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, Norm)}
    assert len(norms) == 2 * 4 + 2
    assert all(type(norm) is KINDS[kind] for norm in norms.values())
    with_weights = {name for name, norm in norms.items() if norm.weight is not None}
    assert with_weights == (norms.keys() if weights else {"decoder.input_norm"})
