"""Looped GPT-2 backbones give the numbers of the code for length generalization."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moeut.interop import from_looped_length, mapping
from moeut.interop.looped import looped_length_maps, with_embedding
from moeut.recurrence.confidence import uncertainty
from moeut.recurrence.row_depth import RowDepth

pytestmark = pytest.mark.golden

FOLDERS = ("looped_length",)
RESTATED = "looped_length"
VALUE, GRADIENT = 1e-10, 1e-9


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def masked_loss(golden, logits: torch.Tensor) -> torch.Tensor:
    t = golden.tensors
    each = F.cross_entropy(logits.transpose(1, 2), t["targets"], reduction="none")
    return each[t["mask"] == 1].mean()


def test_logits_after_every_loop(golden) -> None:
    t, horizon = golden.tensors, golden.config["horizon"]
    model = from_looped_length(golden.config, golden.part("param")).eval()
    output = model(t["tokens"], read_repeats=range(horizon))
    for loop, state in enumerate(output.repeats["decoder"], start=1):
        assert distance(state, t[f"state.{loop}"]) <= VALUE
    logits = torch.stack(output.repeat_logits)
    assert distance(logits, t["step_logits"]) <= VALUE
    counted = t["mask"] == 1
    # The code takes one number for the whole batch: the mean over all predictions that count.
    weights = counted.sum(dim=1).double() / counted.sum()
    found = torch.stack([(uncertainty(one, counted) * weights).sum() for one in logits])
    assert distance(found, t["confidence"]) <= VALUE
    chosen = found[t["confidence.step"].item() - 1]  # loops that say the same may tie
    assert (chosen - found.min()).abs() <= VALUE


def test_each_row_is_read_at_the_step_of_its_length(golden) -> None:
    """Rows that have reached their step wait: no later loop changes what is read of them."""
    t = golden.tensors
    model = from_looped_length(golden.config, golden.part("param")).train()
    depth = RowDepth(torch.zeros_like(t["steps"]), t["steps"])
    output = model(t["tokens"], num_repeats=golden.config["horizon"], row_depth=depth)
    assert distance(output.logits, t["logits"]) <= VALUE
    loss = masked_loss(golden, output.logits)
    assert distance(loss, t["loss"]) <= VALUE
    loss.backward()
    theirs = {n: g for n, g in golden.part("grad").items() if not n.startswith("_read_in")}
    read_in = golden.part("grad")["_read_in.weight"]
    found = model.embedding.weight.grad
    if "_read_in.bias" in golden.part("grad"):  # of one-hot tokens: rows are its columns
        read_in = read_in.T
        assert distance(found.sum(dim=0), golden.part("grad")["_read_in.bias"]) <= GRADIENT
    theirs |= {"embedding": read_in}
    for name in golden.config["params_without_gradient"]:
        theirs.pop(name, None)
    expected = mapping.to_ours(looped_length_maps(model.config), theirs)
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected


def test_the_read_in_of_one_hot_tokens_is_an_embedding(golden) -> None:
    param = golden.part("param")
    rows = with_embedding(param)["embedding"]
    one_hot = torch.eye(len(rows), dtype=torch.float64)
    if "_read_in.bias" in param:
        wanted = F.linear(one_hot, param["_read_in.weight"], param["_read_in.bias"])
        assert torch.equal(rows, wanted)
