"""What all attentions share: positions, masks, traces, and keys from elsewhere."""

import math

import pytest
import torch
from attention_cases import (
    CAUSAL,
    CONTEXT,
    DENSE,
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
    split_heads,
)

from moeut.blocks import masks
from moeut.blocks.attention import AttentionContext, DenseAttention
from moeut.blocks.positions import (
    Relative,
    Rotary,
    regular_distances,
    rotary_tables,
    rotate,
    sinusoids,
)
from moeut.blocks.routing import RoutingContext


@pytest.mark.parametrize("learned_scale", [False, True])
@pytest.mark.parametrize("absolute_gate", [False, True])
def test_relative_attention_is_its_formula(learned_scale, absolute_gate):
    position = Relative(learned_scale=learned_scale, absolute_gate=absolute_gate)
    module = make_attention(DENSE, position)
    routed, plain = make_views()
    query, key = queries_and_keys(module, routed)
    relative = module.relative
    scale = relative.scale if learned_scale else SIZE**-0.5
    logits = torch.zeros(B, H, T, T, dtype=torch.float64)
    for i in range(T):
        for j in range(T):
            r = sinusoids(torch.tensor(j - i), D, torch.float64) @ relative.projection.weight.T
            r = r.view(H, SIZE)
            if absolute_gate:  # (B, H, 1) of (1, H, d) each
                a = relative.gate(routed[:, i]).sigmoid().unsqueeze(-1)
                at = sinusoids(torch.tensor(j), D, torch.float64) @ relative.projection.weight.T
                r = a * r + (1 - a) * at.view(H, SIZE)
            content = ((query[:, :, i] + relative.content_bias) * key[:, :, j]).sum(-1)
            place = ((query[:, :, i] + relative.position_bias) * r).sum(-1)
            logits[:, :, i, j] = (content + place) * scale
    value = split_heads(plain @ module.value.weight.T)
    everything = torch.ones(T, T, dtype=torch.bool)
    attended = attend(logits, value, everything)
    wanted = attended.transpose(1, 2).flatten(-2) @ module.output.weight.T
    like = torch.empty(0, dtype=torch.float64)
    shared = {"head_size": SIZE, "d_model": D, "like": like}
    context = AttentionContext(distances=position.tables(torch.arange(T), 0, T, **shared).distances)
    assert (module(routed, plain, context).output - wanted).abs().max() < 1e-12
    distances = regular_distances(T, T, 1, D, like)
    shifted = AttentionContext(distances=context.distances._replace(table=distances.table))
    assert (module(routed, plain, shifted).output - wanted).abs().max() > 1e-3


def test_rotation_applies_to_queries_and_keys_and_not_to_values():
    module = make_attention(DENSE)
    routed, plain = make_views()
    tables = rotary_tables(torch.arange(T), Rotary(fraction=1.0), SIZE, torch.float64)
    query, key = (rotate(x, tables) for x in queries_and_keys(module, routed))
    value = split_heads(plain @ module.value.weight.T)
    attended = attend(query @ key.mT / math.sqrt(SIZE), value, CAUSAL)
    wanted = attended.transpose(1, 2).flatten(-2) @ module.output.weight.T
    output = module(routed, plain, AttentionContext(is_causal=True, rotary=tables)).output
    assert (output - wanted).abs().max() < 1e-13
    assert (module(routed, plain, CONTEXT).output - wanted).abs().max() > 0.01


@pytest.mark.parametrize("options", [DENSE, SWITCH_HEAD], ids=["dense", "switch"])
def test_traced_attention_is_the_same_and_gives_weights(options):
    module = make_attention(options)
    routed, plain = make_views()
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
        module = make_attention(options)
        routed, plain = make_views()
        context = RoutingContext(balance=True)
        source = module.project_source(routed, plain, context)
        apart = module(routed, plain, AttentionContext(routing=context), source=source)
        together = module(routed, plain, AttentionContext(routing=context))
        assert (apart.output - together.output).abs().max() < 1e-12
        assert apart.routers.keys() == together.routers.keys()
