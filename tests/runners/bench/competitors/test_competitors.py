"""Competitors compute the same on the same inputs, and their floors as many products."""

import pytest
import torch

from runners.bench.competitors import candidates_for, floors, mlp
from runners.bench.competitors.draw import Draw
from runners.bench.layers import CPU_SIZES, QUICK_SIZES, SIZES


@pytest.mark.parametrize("name", ["mlp-tiny", "value-tiny", "output-tiny"])
def test_competitors_compute_the_same(name):
    candidates = candidates_for(SIZES[name], "auto", torch.device("cpu"), torch.float32)
    expected = candidates["ours"].forward()
    for other in ("loop", "all experts"):
        torch.testing.assert_close(candidates[other].forward(), expected, rtol=1e-4, atol=1e-5)


LAYERS = [
    name for name in (*CPU_SIZES, *QUICK_SIZES) if not name.startswith(("dispatch", "router"))
]


@pytest.mark.parametrize("name", LAYERS)
def test_floor_does_as_many_multiplications(name):
    size = SIZES[name]
    candidates = candidates_for(size, "auto", torch.device("cpu"), torch.float32)
    _x, *weights = candidates["dense"].inputs
    assert 2 * size.tokens * sum(weight.numel() for weight in weights) == size.forward_flop


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_floor_by_onednn_equals_the_floor(monkeypatch):
    monkeypatch.setattr(floors, "onednn_is_faster", lambda: True)
    candidates = candidates_for(SIZES["mlp-tiny"], "auto", torch.device("cpu"), torch.float32)
    gradients = []
    for name in ("dense", "dense, oneDNN"):
        out = candidates[name].forward()
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        gradients.append([out, *torch.autograd.grad(out, candidates[name].inputs, weight)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp-tiny", "value-tiny", "output-tiny"])
def test_grouped_product_of_pytorch_computes_the_same(name, monkeypatch):
    monkeypatch.setattr(floors, "takes_grouped_mm", lambda *_: True)
    candidates = candidates_for(SIZES[name], "auto", torch.device("cpu"), torch.bfloat16)
    expected, got = (candidates[one].forward() for one in ("ours", "torch grouped_mm"))
    assert (got - expected).abs().max() < 0.03 * expected.abs().max()
    weight = torch.linspace(-1, 1, expected.numel()).view_as(expected).to(expected.dtype)
    inputs = candidates["ours"].inputs
    pairs = (torch.autograd.grad(out, inputs, weight) for out in (expected, got))
    for one, other in zip(*pairs, strict=True):
        assert (one - other).abs().max() < 0.03 * one.abs().max()


@pytest.mark.parametrize(
    ("dtype", "widths", "capability", "takes"),
    [
        (torch.bfloat16, (1024, 128), (9, 0), True),
        (torch.bfloat16, (412, 128), (9, 0), False),  # rows of 824 bytes
        (torch.bfloat16, (1024, 82), (9, 0), False),
        (torch.float32, (1024, 128), (9, 0), False),
        (torch.bfloat16, (1024, 128), (8, 0), False),
    ],
)
def test_grouped_product_of_pytorch_is_timed_where_it_is_one(
    monkeypatch, dtype, widths, capability, takes
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert floors.takes_grouped_mm(torch.device("cuda"), dtype, *widths) == takes


def test_routers_and_sorts_compare_the_same():
    for name, pairs in (
        ("router-tiny", ("ours", "plain PyTorch")),
        ("dispatch-tiny", ("ours", "torch.sort")),
    ):
        candidates = candidates_for(SIZES[name], "auto", torch.device("cpu"), torch.float32)
        for one, other in zip(*(candidates[pair].forward() for pair in pairs), strict=True):
            torch.testing.assert_close(one, other)


def test_ways_that_are_timed_on_a_gpu_alone_compute_the_same():
    draw = Draw(torch.device("cpu"), torch.bfloat16, torch.float32)
    layer = mlp._Mlp.drawn(SIZES["mlp-tiny"], "grouped", draw)
    with torch.autocast("cpu", torch.bfloat16):
        expected, sorted_before = layer.ours(), layer.ours(layer.sort())
        shared = layer.shared()
        assert torch.equal(sorted_before, expected)
        for _ in range(2):  # of many applications
            torch.testing.assert_close(shared(), expected)
