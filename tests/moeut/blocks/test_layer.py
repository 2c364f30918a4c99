import pytest
import torch

from moeut.blocks.attention import AttentionContext
from moeut.blocks.layer import Layer
from moeut.blocks.routing import RoutingContext

CONTEXT = AttentionContext(is_causal=True)
PLACEMENTS = ("pre", "post", "peri", "sandwich", "branch")


def _layer(make_config, *, cross_attention=False, **options):
    torch.manual_seed(0)
    stack = make_config(position="none", **options).stacks["decoder"]
    layer = Layer(stack, 16, cross_attention=cross_attention).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def _states(seed=1):
    return torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(seed)).double()


def _formula(layer, x, memory, placement):
    """The layer as its placement defines it, with the layer's own blocks."""

    def sublayer(x, name, block):
        norm, second = (getattr(layer, f"{name}_{which}") for which in ("norm", "second_norm"))
        second = norm if second is None else second
        if placement == "pre":
            return x + block(norm(x), norm(x))
        if placement == "post":
            return norm(x + block(x, x))
        if placement == "sandwich":
            return second(x + block(norm(x), norm(x)))
        if placement == "branch":
            return x + second(block(norm(x), norm(x)))
        return x + block(norm(x), x)

    x = sublayer(x, "attention", lambda r, p: layer.attention(r, p, CONTEXT).output)
    if memory is not None:
        routed = layer.cross_attention_norm(memory) if placement == "peri" else memory
        source = layer.cross_attention.project_source(routed, memory, RoutingContext())
        x = sublayer(
            x,
            "cross_attention",
            lambda r, p: layer.cross_attention(r, p, AttentionContext(), source=source).output,
        )
    return sublayer(x, "feed_forward", lambda r, p: layer.feed_forward(r, p, RoutingContext())[0])


@pytest.mark.parametrize("norm", PLACEMENTS)
@pytest.mark.parametrize("attention", ["dense", "gates", "switch_head"])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_placement(make_config, norm, attention, cross, kind):
    options = {"norm": norm, "norm_kind": kind, "attention": attention}
    layer = _layer(make_config, cross_attention=cross, **options)
    x, memory = _states()
    options = {}
    if cross:
        options = {
            "memory": layer.project_memory(memory, RoutingContext()),
            "cross_context": AttentionContext(),
        }
    output = layer(x, CONTEXT, **options).x
    for placement in PLACEMENTS:
        difference = (output - _formula(layer, x, memory if cross else None, placement)).abs().max()
        if placement == norm:
            assert difference < 1e-12
        else:
            assert difference > 0.1


def test_dense_feed_forward_with_peri_norms_has_no_norm(make_config):
    layer = _layer(make_config, norm="peri", attention="dense", feed_forward="dense")
    assert layer.feed_forward_norm is None
    x, _ = _states()
    routed = layer.attention_norm(x)
    x1 = x + layer.attention(routed, x, CONTEXT).output
    wanted = x1 + layer.feed_forward(x1, x1, RoutingContext())[0]
    assert torch.allclose(layer(x, CONTEXT).x, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", PLACEMENTS)
def test_keys_and_values_may_come_from_another_state(make_config, norm):
    layer = _layer(make_config, norm=norm)
    x, other = _states()
    same = layer(x, CONTEXT, key_value_source=x).x
    assert torch.allclose(same, layer(x, CONTEXT).x, rtol=0, atol=1e-12)
    moved = layer(x, CONTEXT, key_value_source=other).x
    assert (moved - same).abs().max() > 0.1


def test_dropout_falls_on_each_sublayer_output(make_config):
    layer = _layer(make_config, norm="pre", dropout=0.999999)
    x, _ = _states()
    assert torch.equal(layer.train()(x, CONTEXT)[0], x)
    assert not torch.allclose(layer.eval()(x, CONTEXT)[0], x)


def test_records_are_named_by_block(make_config):
    layer = _layer(make_config, cross_attention=True)
    x, memory = _states()
    routing = RoutingContext(trace=True)
    context = AttentionContext(is_causal=True, routing=routing)
    source = layer.project_memory(memory, routing)
    record = layer(
        x, context, memory=source, cross_context=AttentionContext(routing=routing)
    ).record
    assert set(record.routers) == {
        "attention.value",
        "attention.output",
        "cross_attention.value",
        "cross_attention.output",
        "feed_forward",
    }
    assert set(record.attention_weights) == {"attention", "cross_attention"}
