import math

import pytest
import torch

from moeut.blocks import masks
from moeut.blocks.attention import AttentionContext, DenseAttention, SwitchHead
from moeut.blocks.positions import (
    Relative,
    Rotary,
    regular_distances,
    rotary_tables,
    rotate,
    sinusoids,
)
from moeut.blocks.routing import RoutingContext

D, H, SIZE, B, T = 12, 2, 6, 3, 5
SWITCH_HEAD = SwitchHead(num_heads=H, head_size=SIZE, num_experts=4, top_k=2)


def _module(options, position=None, seed: int = 0):
    torch.manual_seed(seed)
    module = options.within(d_model=D, dropout=0.0).build(D, position).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def _views():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, B, T, D, generator=generator, dtype=torch.float64).unbind(0)


def _heads(x):
    return x.unflatten(-1, (H, SIZE)).transpose(1, 2)


def _attend(logits, value, allowed):
    return logits.masked_fill(~allowed, float("-inf")).softmax(-1) @ value


def _plain_queries_and_keys(module, routed):
    return _heads(routed @ module.query.weight.T), _heads(routed @ module.key.weight.T)


CAUSAL = torch.ones(T, T).tril().bool()
CONTEXT = AttentionContext(is_causal=True)


@pytest.mark.parametrize("gates", ["none", "output", "value_and_output"])
def test_dense_attention_is_its_formula(gates):
    module = _module(DenseAttention(num_heads=H, head_size=SIZE, gates=gates))
    routed, plain = _views()
    query, key = _plain_queries_and_keys(module, routed)
    value = _heads(plain @ module.value.weight.T)
    if gates == "value_and_output":
        value = value * (routed @ module.value_gate.T).sigmoid().transpose(1, 2)[..., None]
    attended = _attend(query @ key.mT / math.sqrt(SIZE), value, CAUSAL)
    if gates != "none":
        attended = attended * (routed @ module.output_gate.T).sigmoid().transpose(1, 2)[..., None]
    wanted = attended.transpose(1, 2).flatten(-2) @ module.output.weight.T
    assert (module(routed, plain, CONTEXT).output - wanted).abs().max() < 1e-13
    assert (module(plain, routed, CONTEXT).output - wanted).abs().max() > 0.1  # views swapped
    assert (module(routed, plain, AttentionContext()).output - wanted).abs().max() > 0.1  # no mask


def _switch_head(module, routed, plain, *, swapped: bool = False):
    """SwitchHead, one token, head and expert at a time."""
    routers = [module.value_router, module.output_router]
    if swapped:
        routers.reverse()
    experts = SWITCH_HEAD.num_experts

    def gates(router, x, head):
        scores = router[head * experts : (head + 1) * experts] @ x
        chosen = scores.argsort(descending=True)[: SWITCH_HEAD.top_k].tolist()
        return [(head * experts + e, scores[e].sigmoid()) for e in chosen]

    query, key = _plain_queries_and_keys(module, routed)
    value = torch.zeros(B, H, T, SIZE, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                for e, gate in gates(routers[0], routed[b, t], h):
                    value[b, h, t] += gate * (plain[b, t] @ module.value[e])
    attended = _attend(query @ key.mT / math.sqrt(SIZE), value, CAUSAL)
    output = torch.zeros(B, T, D, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                for e, gate in gates(routers[1], routed[b, t], h):
                    output[b, t] += gate * (attended[b, h, t] @ module.output[e])
    return output


def test_switch_head_is_its_formula():
    module = _module(SWITCH_HEAD)
    routed, plain = _views()
    output = module(routed, plain, CONTEXT).output
    assert (output - _switch_head(module, routed, plain)).abs().max() < 1e-12
    assert (output - _switch_head(module, routed, plain, swapped=True)).abs().max() > 0.1


def test_switch_head_records_both_routers():
    module = _module(SWITCH_HEAD)
    routed, plain = _views()
    context = AttentionContext(is_causal=True, routing=RoutingContext(balance=True, trace=True))
    routers = module(routed, plain, context).routers
    for name in ("value", "output"):
        logits = (routed @ getattr(module, f"{name}_router").T).unflatten(-1, (H, -1))
        assert torch.allclose(routers[name].logits, logits, atol=1e-13)
        assert torch.allclose(routers[name].probability, logits.softmax(-1).mean(1), atol=1e-13)
        assert routers[name].selection.max() < SWITCH_HEAD.num_experts
        best = logits.topk(2).indices.sort(-1).values
        assert torch.equal(routers[name].selection.sort(-1).values, best)


@pytest.mark.parametrize("learned_scale", [False, True])
def test_relative_attention_is_its_formula(learned_scale):
    position = Relative(learned_scale=learned_scale)
    module = _module(DenseAttention(num_heads=H, head_size=SIZE), position)
    routed, plain = _views()
    query, key = _plain_queries_and_keys(module, routed)
    relative = module.relative
    scale = relative.scale if learned_scale else SIZE**-0.5
    logits = torch.zeros(B, H, T, T, dtype=torch.float64)
    for i in range(T):
        for j in range(T):
            r = sinusoids(torch.tensor(j - i), D, torch.float64) @ relative.projection.weight.T
            content = ((query[:, :, i] + relative.content_bias) * key[:, :, j]).sum(-1)
            place = ((query[:, :, i] + relative.position_bias) * r.view(H, SIZE)).sum(-1)
            logits[:, :, i, j] = (content + place) * scale
    value = _heads(plain @ module.value.weight.T)
    everything = torch.ones(T, T, dtype=torch.bool)
    attended = _attend(logits, value, everything)
    wanted = attended.transpose(1, 2).flatten(-2) @ module.output.weight.T
    like = torch.empty(0, dtype=torch.float64)
    context = AttentionContext(distances=regular_distances(T, T, 0, D, like))
    assert (module(routed, plain, context).output - wanted).abs().max() < 1e-12
    shifted = AttentionContext(distances=regular_distances(T, T, 1, D, like))
    assert (module(routed, plain, shifted).output - wanted).abs().max() > 1e-3


def test_rotation_applies_to_queries_and_keys_and_not_to_values():
    module = _module(DenseAttention(num_heads=H, head_size=SIZE))
    routed, plain = _views()
    tables = rotary_tables(torch.arange(T), Rotary(fraction=1.0), SIZE, torch.float64)
    query, key = (rotate(x, tables) for x in _plain_queries_and_keys(module, routed))
    value = _heads(plain @ module.value.weight.T)
    attended = _attend(query @ key.mT / math.sqrt(SIZE), value, CAUSAL)
    wanted = attended.transpose(1, 2).flatten(-2) @ module.output.weight.T
    output = module(routed, plain, AttentionContext(is_causal=True, rotary=tables)).output
    assert (output - wanted).abs().max() < 1e-13
    assert (module(routed, plain, CONTEXT).output - wanted).abs().max() > 0.01


@pytest.mark.parametrize(
    "options", [DenseAttention(num_heads=H, head_size=SIZE), SWITCH_HEAD], ids=["dense", "switch"]
)
def test_traced_attention_is_the_same_and_gives_weights(options):
    module = _module(options)
    routed, plain = _views()
    real = torch.arange(T) < torch.tensor([5, 3, 1])[:, None]
    bias = masks.additive(masks.real_keys(real), routed)
    for kind in ({"is_causal": True}, {"bias": bias}):
        fast = module(routed, plain, AttentionContext(**kind))
        traced = module(routed, plain, AttentionContext(**kind, routing=RoutingContext(trace=True)))
        assert fast.weights is None
        assert (fast.output - traced.output).abs().max() < 1e-13
        assert torch.allclose(traced.weights.sum(-1), torch.ones(B, H, T).double())
        hidden = ~CAUSAL if "is_causal" in kind else ~real[:, None, None, :]
        assert (traced.weights.masked_select(hidden) == 0).all()


def test_attending_to_a_source_is_attending_to_oneself_when_they_are_one():
    for options in (
        DenseAttention(num_heads=H, head_size=SIZE, gates="value_and_output"),
        SWITCH_HEAD,
    ):
        module = _module(options)
        routed, plain = _views()
        context = RoutingContext(balance=True)
        source = module.project_source(routed, plain, context)
        apart = module(routed, plain, AttentionContext(routing=context), source=source)
        together = module(routed, plain, AttentionContext(routing=context))
        assert (apart.output - together.output).abs().max() < 1e-12
        assert apart.routers.keys() == together.routers.keys()
