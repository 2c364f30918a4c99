"""Looped backbones for regression in context give the numbers of the published code."""

from __future__ import annotations

import pytest
import torch

from moeut.interop import from_looped_window, mapping
from moeut.interop.looped import looped_window_maps

pytestmark = pytest.mark.golden

FOLDERS = ("looped_window",)
RESTATED = "looped_window"
VALUE, GRADIENT = 1e-10, 1e-9


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


@pytest.mark.parametrize("prefix", ["grad", "grad_full"])
def test_regression_over_a_window_of_loops(golden, prefix) -> None:
    t, options = golden.tensors, golden.config
    model = from_looped_window(options, golden.part("param"))
    last = options["window"]
    with_gradient = last if prefix == "grad" else None
    predictions, states = model(
        t["xs"], t["ys"], loops=options["n_loops"], with_gradient=with_gradient
    )
    for loop, state in enumerate(states, start=1):
        assert distance(state, t[f"state.{loop}"]) <= VALUE
    assert distance(predictions, t["predictions_all"]) <= VALUE
    assert distance(predictions[-last:], t["predictions"]) <= VALUE
    loss = (predictions[-last:] - t["ys"]).square().mean()
    assert distance(loss, t["loss"]) <= VALUE
    loss.backward()
    expected = mapping.to_ours(looped_window_maps(model.config), golden.part(prefix))
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected
