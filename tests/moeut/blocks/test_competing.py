"""Experts of the Sparse Universal Transformer: router, feed-forward, attention and their loss."""

import math
from dataclasses import replace

import pytest
import torch

from moeut.blocks.attention import AttentionContext, MixtureOfAttention
from moeut.blocks.feed_forward import SoftmaxMoE
from moeut.blocks.positions import Clipped, Fire, Relative
from moeut.blocks.routing import RoutingContext, mutual_information_loss
from moeut.options import OptionError

B, T, D, H, SIZE, EXPERTS, K = 2, 5, 6, 2, 4, 3, 2
PLAIN = RoutingContext()


def fill(module):
    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def states(seed=1):
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed)).double()


def probabilities(router, z):
    hidden = torch.tanh(z @ router.hidden.weight.T + router.hidden.bias)
    return (hidden @ router.output.weight.T).softmax(-1)


def gates(router, z):
    """(B, T, E) of all experts, 0 where they are not chosen."""
    p = probabilities(router, z)
    chosen = torch.zeros_like(p).scatter(-1, p.argsort(-1, descending=True)[..., :K], 1.0)
    return p * chosen / ((p * chosen).sum(-1, keepdim=True) + 1e-6)


def test_feed_forward_is_its_formula():
    options = SoftmaxMoE(num_experts=EXPERTS, expert_size=5, top_k=K, router_hidden_size=7)
    module = fill(options.build(D))
    routed, plain = states(1), states(2)
    g = gates(module.router, routed)
    wanted = sum(
        g[..., e, None]
        * ((plain @ module.up[e] + module.up_bias[e]).relu() @ module.down[e] + module.down_bias[e])
        for e in range(EXPERTS)
    )
    output, record = module(routed, plain, PLAIN)
    assert record is None
    assert (output - wanted).abs().max() < 1e-12
    # A token that sits out gets nothing, not even the biases.
    active = torch.ones(B, T, dtype=torch.bool)
    active[0, 2] = False
    left = module(routed, plain, RoutingContext(active))[0]
    assert not left[0, 2].any()
    assert (left - wanted)[active].abs().max() < 1e-12
    few = states()[:1, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, x, PLAIN)[0], few)


@pytest.mark.parametrize("kind", ["none", "clipped", "fire"])
def test_attention_is_its_formula(kind):
    options = MixtureOfAttention(num_heads=H, head_size=SIZE, num_experts=EXPERTS, top_k=K)
    position = {"clipped": Clipped(max_distance=2), "fire": Fire(threshold=2.0)}.get(kind)
    module = fill(options.within(d_model=D, dropout=0.0).build(D, position))
    z, plain = states(1), states(2)
    g = gates(module.router, z)
    key = (z @ module.key.weight.T).unflatten(-1, (H, SIZE)) / SIZE**0.25
    value = (plain @ module.value.weight.T).unflatten(-1, (H, SIZE))
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    index = (torch.arange(T) - torch.arange(T)[:, None]).clamp(-1, 1) + 2
    wanted = 0
    tables = (position or Clipped()).tables(
        torch.arange(T), 0, T, head_size=SIZE, d_model=D, like=z
    )
    for e in range(EXPERTS):
        query = (z @ module.query[e]).unflatten(-1, (H, SIZE)) / SIZE**0.25
        logits = torch.einsum("bthd,bshd->bhts", query, key)
        if kind == "fire":  # one bias for the heads of all experts
            logits = logits + module.relative.bias(tables.distances, z.dtype)
        if kind == "clipped":
            vectors = module.relative.weight[:, :, index]  # (H, d, T, K)
            logits = logits + torch.einsum("bthd,hdts->bhts", query, vectors)
        weights = logits.masked_fill(future, -math.inf).softmax(-1)
        heads = torch.einsum("bhts,bshd->bthd", weights, value).flatten(2)
        wanted = wanted + g[..., e, None] * (heads @ module.output[e])
    context = AttentionContext(is_causal=True)
    context = replace(context, distances=tables.distances if position else None)
    assert (module(z, plain, context).output - wanted).abs().max() < 1e-12
    source = module.project_source(z, plain, PLAIN)
    assert (module(z, plain, context, source=source).output - wanted).abs().max() < 1e-12
    few = states()[:1, :2].requires_grad_()
    plainly = AttentionContext(is_causal=True)
    if position is None:
        assert torch.autograd.gradcheck(lambda x: module(x, x, plainly).output, few)


@pytest.mark.parametrize("balance", ["mutual_information", "sum_of_entropies"])
def test_loss_is_the_mutual_information_of_all_applications(balance):
    """Two applications of one router, the second with what is left of each token."""
    options = SoftmaxMoE(num_experts=EXPERTS, expert_size=5, top_k=K, balance=balance)
    module = fill(options.build(D))
    first, second = states(1), states(2)
    keep = torch.rand(B, T, generator=torch.Generator().manual_seed(3)).double()
    keep[1, 3] = 0.0
    keep.requires_grad_()

    def loss(keep):
        recording = RoutingContext(balance=True)
        records = [
            module(first, first, recording)[1],
            module(second, second, replace(recording, keep=keep))[1],
        ]
        return mutual_information_loss([records], 0.5)

    p = torch.cat([probabilities(module.router, x).flatten(0, 1) for x in (first, second)])
    m = torch.cat((torch.ones(B * T).double(), keep.flatten()))
    m = m / m.sum()
    of_tokens = -(m[:, None] * p * p.log()).sum()
    mean = m @ p
    of_mean = -(mean * mean.log()).sum()
    sign = -1 if balance == "mutual_information" else 1
    assert (loss(keep) - 0.5 * (of_tokens + sign * of_mean)).abs() < 1e-12
    assert torch.autograd.gradcheck(loss, keep)


def test_the_loss_of_a_model_is_that_of_both_kinds_of_routers(make_model):
    options = {"attention": "mixture", "feed_forward": "softmax_moe", "position": "clipped"}
    model = make_model(**options, group=1, repeats=2, norm="post")
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    output = model.train()(tokens, trace=True)
    wanted = 0
    for name in ("attention.output", "feed_forward"):
        logits = [record.routers[name].logits for record in output.trace["decoder"]]
        p = torch.stack(logits).softmax(-1).flatten(0, -2)
        mean = p.mean(0)
        wanted += 0.3 * (-(p * p.log()).sum(-1).mean() + (mean * mean.log()).sum())
    assert (output.auxiliary_loss - wanted).abs() < 1e-12
    assert model.eval()(tokens).auxiliary_loss == 0


def test_what_experts_do_not_have_is_refused():
    for options, option in (
        ({"num_key_heads": 1}, "num_key_heads"),
        ({"bias": "all"}, "bias"),
    ):
        with pytest.raises(OptionError) as caught:
            MixtureOfAttention(num_heads=2, **options).within(d_model=D, dropout=0.0)
        assert caught.value.option == option
    for kind in (MixtureOfAttention, SoftmaxMoE):
        with pytest.raises(OptionError, match="must be at most num_experts=2"):
            kind(num_experts=2, top_k=3)


def test_queries_of_a_key_head_share_its_relative_positions():
    """Of k queries for each key head, the i-th ones are those of an attention without experts."""
    torch.manual_seed(0)
    options = Relative(learned_scale=True, absolute_gate=True)
    position = options.build_relative(2, 4, 6).double()
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter)
    query, key = torch.randn(1, 6, 5, 4).double(), torch.randn(1, 2, 5, 4).double()
    routed = torch.randn(1, 5, 6).double()
    distances = options.tables(torch.arange(5), 0, 5, head_size=4, d_model=6, like=routed).distances
    found = position(query, key.repeat_interleave(3, 1), distances, routed)
    for choice in range(3):
        wanted = position(query[:, choice::3], key, distances, routed)
        assert (found[:, choice::3] - wanted).abs().max() < 1e-12
