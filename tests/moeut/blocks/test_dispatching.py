"""Decisions of routers in one operation: equality with the plain path, to the bit."""

import pytest
import torch
from torch import Tensor

from moeut.blocks.dispatching import decide
from moeut.blocks.routing import RoutingContext
from moeut.ops import native

needs_native = pytest.mark.skipif(
    native.why_not() is not None, reason=f"no C++ operations: {native.why_not()}"
)


def _decided(
    logits: Tensor, top_k: int, num_routers: int, context: RoutingContext, drop: float
) -> tuple[list[Tensor], Tensor]:
    """Return what is decided, by sorted rows where a choice has no order, and a gradient."""
    torch.manual_seed(0)
    logits = logits.clone().requires_grad_()
    kept, loss = [], logits.new_zeros(())
    for chosen, record in decide(logits, top_k, context, num_routers=num_routers, drop=drop):
        rows, by_expert = chosen.dispatch.expert_index.view(chosen.gates.shape).sort(dim=-1)
        gates = chosen.gates.gather(-1, by_expert).masked_fill(rows < 0, 0.0)
        assert record is not None
        assert record.probability is not None
        kept += [rows, gates, record.probability, chosen.dispatch.counts, chosen.dispatch.offsets]
        weights = torch.randn(gates.shape), torch.randn(record.probability.shape)
        loss = loss + (gates * weights[0]).sum() + (record.probability * weights[1]).sum()
    return kept, torch.autograd.grad(loss, logits)[0]


@needs_native
@pytest.mark.parametrize(
    ("heads", "experts", "top_k"), [(1, 52, 8), (3, 4, 2), (2, 16, 16), (1, 2, 1)]
)
@pytest.mark.parametrize("num_routers", [1, 2])
@pytest.mark.parametrize(
    ("tokens", "drop"), [("all", 0.0), ("padded", 0.0), ("padded", 0.7), ("packed", 0.0)]
)
def test_one_operation_decides_as_many_to_the_bit(
    heads, experts, top_k, num_routers, tokens, drop, monkeypatch
):
    batch = 1 if tokens == "packed" else 3
    logits = 5 * torch.randn(batch, 37, num_routers * heads, experts)
    real = torch.arange(37) < torch.tensor([[37], [5], [0]]) if tokens == "padded" else None
    context = RoutingContext.create(real, balance=True, trace=False, dtype=torch.float32)
    if tokens == "packed":  # 37 tokens of 6 rows of 11
        active = torch.randperm(66).view(6, 11) < 37
        context = context.packed(active, active.flatten().nonzero()[:, 0], torch.float32)
    got, gradient = _decided(logits, top_k, num_routers, context, drop)
    monkeypatch.setattr(native, "why_not", lambda: "a test does without")
    expected, wanted = _decided(logits, top_k, num_routers, context, drop)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(gradient, wanted)
    assert gradient.any()


@needs_native
@pytest.mark.parametrize(
    ("experts", "top_k"), [(5, 1), (11, 4), (13, 13), (20, 2), (52, 8), (130, 2), (155, 12)]
)
def test_equal_logits_are_chosen_from_as_topk_does(experts, top_k):
    logits = (
        torch.randint(-3, 3, (1, 500, 1, experts))
        / 2
        * torch.tensor([1.0, -1.0])[:, None, None, None]
    )
    logits[:, 400:] = logits[:, 400:].where(logits[:, 400:] < 1.0, torch.nan)
    ((chosen, _),) = decide(logits, top_k, RoutingContext())
    rows = chosen.dispatch.expert_index.view(2, 500, 1, top_k)
    expected = logits.topk(top_k, dim=-1, sorted=False).indices
    assert torch.equal(rows.sort(dim=-1).values, expected.sort(dim=-1).values)
