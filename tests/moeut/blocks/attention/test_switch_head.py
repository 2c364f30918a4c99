"""SwitchHead is its formula, and records what its routers decide."""

import math

import torch
from attention_cases import (
    CAUSAL,
    CONTEXT,
    SIZE,
    SWITCH_HEAD,
    B,
    D,
    H,
    T,
    attend,
    make_attention,
    make_views,
    queries_and_keys,
)

from moeut.blocks.attention import AttentionContext
from moeut.blocks.routing import RoutingContext


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

    query, key = queries_and_keys(module, routed)
    value = torch.zeros(B, H, T, SIZE, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                for e, gate in gates(routers[0], routed[b, t], h):
                    value[b, h, t] += gate * (plain[b, t] @ module.value[e])
    attended = attend(query @ key.mT / math.sqrt(SIZE), value, CAUSAL)
    output = torch.zeros(B, T, D, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                for e, gate in gates(routers[1], routed[b, t], h):
                    output[b, t] += gate * (attended[b, h, t] @ module.output[e])
    return output


def test_switch_head_is_its_formula():
    module = make_attention(SWITCH_HEAD)
    routed, plain = make_views()
    output = module(routed, plain, CONTEXT).output
    assert (output - _switch_head(module, routed, plain)).abs().max() < 1e-12
    assert (output - _switch_head(module, routed, plain, swapped=True)).abs().max() > 0.1


def test_switch_head_records_both_routers():
    module = make_attention(SWITCH_HEAD)
    routed, plain = make_views()
    context = AttentionContext(is_causal=True, routing=RoutingContext(balance=True, trace=True))
    routers = module(routed, plain, context).routers
    for name in ("value", "output"):
        logits = (routed @ getattr(module, f"{name}_router").T).unflatten(-1, (H, -1))
        assert torch.allclose(routers[name].logits, logits, rtol=0, atol=1e-13)
        assert torch.allclose(
            routers[name].probability, logits.softmax(-1).mean(1), rtol=0, atol=1e-13
        )
        assert routers[name].selection.max() < SWITCH_HEAD.num_experts
        best = logits.topk(2).indices.sort(-1).values
        assert torch.equal(routers[name].selection.sort(-1).values, best)
