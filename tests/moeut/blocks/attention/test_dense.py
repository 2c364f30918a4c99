"""Dense attention is its formula, with and without gates."""

import math

import pytest
from attention_cases import (
    CAUSAL,
    CONTEXT,
    SIZE,
    H,
    attend,
    make_attention,
    make_views,
    queries_and_keys,
    split_heads,
)

from moeut.blocks.attention import AttentionContext, DenseAttention


@pytest.mark.parametrize("gates", ["none", "output", "value_and_output"])
def test_dense_attention_is_its_formula(gates):
    module = make_attention(DenseAttention(num_heads=H, head_size=SIZE, gates=gates))
    routed, plain = make_views()
    query, key = queries_and_keys(module, routed)
    value = split_heads(plain @ module.value.weight.T)
    if gates == "value_and_output":
        value = value * (routed @ module.value_gate.T).sigmoid().transpose(1, 2)[..., None]
    attended = attend(query @ key.mT / math.sqrt(SIZE), value, CAUSAL)
    if gates != "none":
        attended = attended * (routed @ module.output_gate.T).sigmoid().transpose(1, 2)[..., None]
    wanted = attended.transpose(1, 2).flatten(-2) @ module.output.weight.T
    assert (module(routed, plain, CONTEXT).output - wanted).abs().max() < 1e-13
    assert (module(plain, routed, CONTEXT).output - wanted).abs().max() > 0.1  # views swapped
    assert (module(routed, plain, AttentionContext()).output - wanted).abs().max() > 0.1  # no mask
