"""Dense attention is its formula, with and without gates, grouped keys, biases and norms."""

import dataclasses
import math

import pytest
import torch
from attention_cases import (
    CAUSAL,
    CONTEXT,
    SIZE,
    D,
    H,
    T,
    attend,
    make_attention,
    make_views,
    queries_and_keys,
    split_heads,
)

from moeut.blocks.attention import AttentionContext, DenseAttention, SwitchHead
from moeut.blocks.positions import Rotary
from moeut.blocks.routing import RoutingContext
from moeut.options import OptionError


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


@pytest.mark.parametrize("qk_norm", ["none", "before", "after"])
@pytest.mark.parametrize("bias", ["none", "query_key", "input", "output", "all"])
@pytest.mark.parametrize("rotary", [None, False, True])
@pytest.mark.parametrize("value_size", [SIZE, 5])
def test_grouped_keys_biases_norms_and_rotation_are_their_formula(
    qk_norm, bias, rotary, value_size
):
    """Four heads of queries and two of keys: query head h reads key head h // 2."""
    options = {"num_heads": 4, "num_key_heads": 2, "qk_norm": qk_norm, "bias": bias}
    if value_size != SIZE:
        options["value_head_size"] = value_size
    module = make_attention(DenseAttention(head_size=SIZE, gates="value", **options))
    routed, plain = make_views()
    rotation = None
    if rotary is not None:
        table = Rotary(fraction=1.0, pairs=rotary).tables(
            torch.arange(T), 0, T, head_size=SIZE, d_model=D, like=routed
        )
        rotation = table.rotary
    has = {
        "query_key": ("query", "key"),
        "input": ("query", "key", "value"),
        "all": ("query", "key", "value", "output"),
    }.get(bias, (bias,))

    def project(name, x, heads):
        layer = getattr(module, name)
        assert (layer.bias is not None) == (name in has)
        y = x @ layer.weight.T + (layer.bias if name in has else 0)
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    def rms(x, place):
        return x / x.square().mean(-1, keepdim=True).sqrt() if qk_norm == place else x

    def place(x):
        x = rms(x, "before")
        for t in range(T) if rotation is not None else ():
            turned = x[:, :, t].clone()
            for i in range(SIZE // 2):
                a, b = (2 * i, 2 * i + 1) if rotary else (i, i + SIZE // 2)
                angle = t * 10000.0 ** (-2 * i / SIZE)
                turned[..., a] = x[:, :, t, a] * math.cos(angle) - x[:, :, t, b] * math.sin(angle)
                turned[..., b] = x[:, :, t, a] * math.sin(angle) + x[:, :, t, b] * math.cos(angle)
            x = x.index_copy(2, torch.tensor([t]), turned.unsqueeze(2))
        return rms(x, "after")

    query, key = place(project("query", routed, 4)), place(project("key", routed, 2))
    value = project("value", plain, 2)
    assert value.shape[-1] == value_size
    value = value * (routed @ module.value_gate.T).sigmoid().transpose(1, 2)[..., None]
    heads = [
        attend(query[:, h] @ key[:, h // 2].mT / math.sqrt(SIZE), value[:, h // 2], CAUSAL)
        for h in range(4)
    ]
    merged = torch.stack(heads, dim=2).flatten(-2)
    wanted = merged @ module.output.weight.T + (module.output.bias if "output" in has else 0)
    context = dataclasses.replace(CONTEXT, rotary=rotation)
    assert (module(routed, plain, context).output - wanted).abs().max() < 1e-13
    # Keys from elsewhere are normed and rotated by the pass that attends.
    source = module.project_source(routed, plain, RoutingContext())
    again = module(routed, plain, context, source=source).output
    assert (again - wanted).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("options", "option", "said"),
    [
        (DenseAttention(num_heads=4, num_key_heads=3), "num_key_heads", "must divide num_heads=4"),
        (SwitchHead(num_heads=4, num_key_heads=2), "num_key_heads", "experts of its own"),
        (SwitchHead(num_heads=4, bias="all"), "bias", "expected none or query_key"),
    ],
)
def test_heads_and_biases_that_do_not_fit_are_refused(options, option, said):
    with pytest.raises(OptionError, match=said) as caught:
        options.within(d_model=D, dropout=0.0)
    assert caught.value.option == option
