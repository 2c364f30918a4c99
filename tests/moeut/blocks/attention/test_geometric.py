"""Geometric attention is its formula: right before left at equal distance, no diagonal."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from attention_cases import (
    SIZE,
    B,
    D,
    H,
    T,
    make_attention,
    make_views,
    queries_and_keys,
    split_heads,
)

import moeut
from moeut.blocks import masks
from moeut.blocks.attention import AttentionContext, DenseAttention, GeometricAttention
from moeut.blocks.attention.dense import DenseMultiHeadAttention
from moeut.blocks.attention.geometric import geometric_weights
from moeut.blocks.positions import Clipped, Fire, Relative, Rotary, rotate
from moeut.blocks.routing import RoutingContext
from moeut.recurrence.mixture import TokenChoice

COLUMNS = torch.arange(T)
PADDED = torch.arange(T) < torch.tensor([5, 3, 1])[:, None]
TRACE = RoutingContext(trace=True)


def context(**options: Any) -> AttentionContext:
    return AttentionContext(columns=COLUMNS, routing=TRACE, **options)


def options(**others: Any) -> GeometricAttention:
    return GeometricAttention(num_heads=H, head_size=SIZE, **others)


def formula(module, routed, allowed, *, right_first: bool = True, diagonal: bool = False):
    """The weights, one query and key at a time; ``allowed`` is (B, T, T)."""
    query, key = queries_and_keys(module, routed)
    if module.content_bias is not None:
        query = query + module.content_bias[:, None]
    direction = (module.direction(routed) * module.direction_scale).unflatten(-1, (H, 2))

    def sigma(b, h, i, j):
        if not allowed[b, i, j] or (i == j and not diagonal):
            return torch.tensor(0.0, dtype=torch.float64)
        logit = query[b, h, i] @ key[b, h, j] * module.scale
        return (logit + direction[b, i, h, int(j > i)] + module.bias).sigmoid()

    weights = torch.zeros(B, H, T, T, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                near = [(abs(j - i), (j < i) == right_first, j) for j in range(T)]
                open_yet = torch.tensor(1.0, dtype=torch.float64)
                for _, _, j in sorted(near):
                    weights[b, h, i, j] = open_yet * sigma(b, h, i, j)
                    open_yet = open_yet * (1 - sigma(b, h, i, j))
    return weights


MASKS = {
    "all": ({}, torch.ones(B, T, T, dtype=torch.bool)),
    "causal": ({"is_causal": True}, torch.ones(T, T).tril().bool().expand(B, T, T)),
    "padded": (
        {"bias": masks.additive(masks.real_keys(PADDED), torch.zeros(1).double())},
        PADDED[:, None].expand(B, T, T),
    ),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("content_bias", [False, True])
def test_geometric_attention_is_its_formula(mask, normalise, content_bias):
    module = make_attention(options(normalise=normalise, content_bias=content_bias))
    routed, plain = make_views()
    given, allowed = MASKS[mask]
    weights = formula(module, routed, allowed)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
    output = module(routed, plain, context(**given))
    assert (output.weights - weights).abs().max() < 1e-13
    attended = weights @ split_heads(plain @ module.value.weight.T)
    wanted = attended.transpose(1, 2).flatten(-2) @ module.output.weight.T
    assert (output.output - wanted).abs().max() < 1e-12
    assert output.weights.sum(-1).max() < 1 + 1e-12
    if mask == "all":
        assert output.weights.sum(-1).min() > (1 - 1e-12 if normalise else 0)


POSITIONS = {
    "rotary": Rotary(),
    "pairs": Rotary(pairs=True),
    "relative": Relative(learned_scale=True, absolute_gate=True),
    "clipped": Clipped(max_distance=3),
    "fire": Fire(hidden_size=4, threshold=2.0),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_a_position_acts_on_the_content(name):
    """Rotary positions rotate the bias with its query; what others add is scaled like the rest."""
    module = make_attention(options(), POSITIONS[name])
    routed, plain = make_views()
    tables = POSITIONS[name].tables(
        COLUMNS, 0, T, head_size=SIZE, d_model=D, like=routed, key_positions=None
    )
    about = context(rotary=tables.rotary, distances=tables.distances)
    query, key = queries_and_keys(module, routed)
    query = query + module.content_bias[:, None]
    if tables.rotary is not None:
        content = rotate(query, tables.rotary) @ rotate(key, tables.rotary).mT
    else:
        content = module.relative(query, key, tables.distances, routed) * SIZE**0.5
    direction = (module.direction(routed) * module.direction_scale).unflatten(-1, (H, 2))
    offset = (COLUMNS - COLUMNS[:, None])[None, None]
    back, front = direction.transpose(1, 2).split(1, dim=-1)
    logits = content * module.scale + torch.where(offset > 0, front, back) + module.bias
    wanted = geometric_weights(logits, offset != 0, offset, normalise=False)
    output = module(routed, plain, about)
    assert (output.weights - wanted).abs().max() < 1e-13
    assert (output.weights - make_attention(options())(routed, plain, context()).weights).any()
    source = module.project_source(routed, plain, RoutingContext())
    assert (module(routed, plain, about, source=source).weights - wanted).abs().max() < 1e-13
    few = routed[:1].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: module(x, x, about).output, few, fast_mode=True, atol=1e-6
    )


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_a_position_decodes_and_packs(make_model, name):
    """A cache holds the whole pass; in training tokens that go on are packed, in a trace not."""
    model = make_model(
        "decoder_lm", attention=options(), position=POSITIONS[name], halting=TokenChoice()
    )
    model.decoder.controllers["halting"].weight.normal_(generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(2))
    real = torch.arange(6) < torch.tensor([6, 3, 5])[:, None]
    traced = model(tokens, padding_mask=real, trace=True)
    assert (model(tokens, padding_mask=real).logits - traced.logits)[real].abs().max() < 1e-12
    model.eval()
    cache = model.new_cache()
    steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(6)]
    assert (torch.cat(steps, dim=1) - model(tokens).logits).abs().max() < 1e-12


def test_the_comparison_sees_the_order_and_the_diagonal():
    module = make_attention(options())
    routed, plain = make_views()
    given, allowed = MASKS["all"]
    weights = module(routed, plain, context(**given)).weights
    for change in ({"right_first": False}, {"diagonal": True}):
        assert (formula(module, routed, allowed, **change) - weights).abs().max() > 0.01


def test_the_right_key_comes_first_at_equal_distance():
    """Where everything matches, each query takes its right neighbour; the last one its left."""
    offset = (torch.arange(T) - COLUMNS.unsqueeze(-1))[None, None]
    weights = geometric_weights(
        torch.full((1, 1, T, T), 50.0), offset != 0, offset, normalise=False
    )
    wanted = torch.zeros(T, T)
    wanted[range(T - 1), range(1, T)] = 1.0
    wanted[-1, -2] = 1.0
    assert torch.allclose(weights[0, 0], wanted, atol=1e-6)


def test_a_query_that_sees_nothing_attends_to_nothing():
    for normalise in (False, True):
        module = make_attention(options(normalise=normalise))
        routed, plain = make_views()
        routed.requires_grad_()
        output = module(routed, plain, context(is_causal=True))
        assert (output.output[:, 0] == 0).all()
        output.output.sum().backward()
        assert routed.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_columns_may_differ_from_row_to_row():
    module = make_attention(options())
    routed, plain = make_views()
    source = module.project_source(routed, plain, RoutingContext())
    full = module(routed, plain, context()).output
    columns = torch.tensor([[3, 0], [1, 2], [4, 4]])
    queries = torch.stack([routed[row, column] for row, column in enumerate(columns)])
    some = AttentionContext(columns=columns)
    output = module(queries, queries, some, source=source).output
    for row, column in enumerate(columns):
        assert (output[row] - full[row, column]).abs().max() < 1e-13


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("normalise", [False, True])
def test_float32_is_as_exact_as_its_logits(scale, normalise):
    """Over 400 keys: the error is a small multiple of what rounding the logits alone makes."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(1, 2, 400, 400, generator=generator) - 3.0
    offset = (torch.arange(400) - torch.arange(400).unsqueeze(-1))[None, None]
    low = geometric_weights(logits, offset != 0, offset, normalise=normalise)
    exact = geometric_weights(logits.double(), offset != 0, offset, normalise=normalise)
    nudged = logits.double() * (1 + 2**-24)
    rounded = geometric_weights(nudged, offset != 0, offset, normalise=normalise)
    bound = 8 * (rounded - exact).abs().max() + 2**-20
    assert (low - exact).abs().max() < bound
    assert exact.max() > 0.9 or scale == 1.0


def test_low_precision_weighs_in_float32():
    module = make_attention(options()).float()
    routed, plain = (view.float() for view in make_views())
    exact = module(routed, plain, context())
    with torch.autocast("cpu", torch.bfloat16):
        low = module(routed, plain, context())
    assert low.weights.dtype == torch.float32
    assert (low.weights - exact.weights).abs().max() < 0.1
    assert module.bfloat16()(routed.bfloat16(), plain.bfloat16(), context()).output.isfinite().all()


@pytest.mark.parametrize("normalise", [False, True])
def test_gradients(normalise):
    module = make_attention(options(normalise=normalise, gates="output"))
    routed = make_views()[0][:2, :4].clone().requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def output(routed, *parameters):
        where = AttentionContext(columns=torch.arange(4))
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, state, (routed, routed, where)).output

    assert torch.autograd.gradcheck(output, (routed, *parameters), atol=1e-7)


def test_dropout_falls_on_keys():
    module = make_attention(options(dropout=0.999999)).train()
    routed, plain = make_views()
    weights = module(routed, plain, context()).weights
    with torch.no_grad():
        module.key.weight.zero_()
    assert torch.equal(module.eval()(routed, plain, context()).weights, weights)


def make(form: str = "decoder_lm", **others: Any) -> moeut.ModelConfig:
    sizes = {"encoder_decoder": {"source_vocabulary_size": 7}}.get(form, {})
    return moeut.architecture(
        "universal", form=form, vocabulary_size=9, d_model=D, **sizes, **others
    )


def test_an_encoder_is_read_by_dense_attention_with_the_same_heads():
    heads = {"kind": "geometric", "num_heads": H, "value_head_size": 5, "gates": "output"}
    config = make("encoder_decoder", attention=heads, position="none")
    layer = moeut.build(config).decoder.layers[0]
    assert type(layer.cross_attention) is DenseMultiHeadAttention
    across = config.attention.across()
    heads = DenseAttention(
        num_heads=H, head_size=SIZE, value_head_size=5, dropout=0.0, gates="output"
    )
    assert across == dataclasses.replace(heads, num_key_heads=H)
    assert (layer.cross_attention.output_gate is None) == (layer.attention.output_gate is None)


def test_it_starts_as_published():
    torch.manual_seed(0)
    config = make(
        attention={"kind": "geometric", "num_heads": H, "head_size": 32},
        position="none",
        initialization="normal",
    )
    attention = moeut.build(config).decoder.layers[0].attention
    assert attention.scale.item() == pytest.approx(32**-0.5)
    assert (attention.direction_scale.item(), attention.bias.item()) == (1.0, 0.0)
    assert (attention.content_bias == 0).all()
    for part in ("query", "key", "value", "output"):  # Glorot, each head by itself
        bound = math.sqrt(6 / (D + 32))
        assert 0.95 * bound < getattr(attention, part).weight.abs().max() <= bound
