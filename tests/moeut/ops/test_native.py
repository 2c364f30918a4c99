"""Operations in C++: what they draw, and equality with PyTorch's, or with one another's."""

import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moeut.ops import Dispatch, cross_entropy_sum, dropout, expert_linear, expert_mlp, native

pytestmark = pytest.mark.skipif(
    native.why_not() is not None, reason=f"no C++ operations: {native.why_not()}"
)


def test_dropout_keeps_the_mean_and_drops_independently():
    torch.manual_seed(1)
    kept = dropout(torch.ones(1000, 1003), 0.3) != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.002)
    # Neighbours along rows, columns, and at the distances at which counters begin anew.
    centred = kept.flatten().float() - 0.7
    for distance in (1, 16, 64, 1003, 2**14):
        together = float((centred[distance:] * centred[:-distance]).mean())
        assert abs(together) < 5 * 0.21 / 1000  # five standard errors of a million pairs
    assert float(kept.float().mean(dim=0).std()) == pytest.approx((0.21 / 1000) ** 0.5, rel=0.1)


def test_dropout_follows_the_generator_and_its_gradient_the_mask():
    x = torch.randn(7, 33, requires_grad=True)
    state = torch.get_rng_state()
    first, second = dropout(x, 0.4), dropout(x, 0.4)
    torch.set_rng_state(state)
    again = dropout(x, 0.4)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    (gradient,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(gradient, torch.where(first != 0, torch.tensor(1 / 0.6), 0.0))


def test_dropout_is_off_outside_training_and_at_zero():
    x = torch.randn(5, 5)
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0), x)


@pytest.mark.parametrize("width", [2, 16, 4001])
def test_cross_entropy_is_that_of_float64(width):
    torch.manual_seed(2)
    logits = (20 * torch.randn(30, width)).requires_grad_()
    targets = torch.randint(width, (30,))
    targets[::7] = -100
    loss = cross_entropy_sum(logits, targets, -100)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (got,) = torch.autograd.grad(3 * loss, logits)
    (wanted,) = torch.autograd.grad(3 * expected, exact)
    assert float((got - wanted).abs().max()) < 3e-6


def test_cross_entropy_shows_what_is_not_finite_and_refuses_classes_that_are_not_there():
    logits = torch.zeros(2, 3)
    logits[0, 1] = torch.nan
    assert cross_entropy_sum(logits, torch.tensor([0, 1]), -100).isnan()
    with pytest.raises(IndexError, match="out of bounds"):
        cross_entropy_sum(torch.zeros(2, 3), torch.tensor([0, 3]), -100)


# Wider than 128, sums are cut into parts, of which a gate weighs every one.
@pytest.mark.parametrize(("width", "hidden"), [(37, 18), (300, 133)])
@pytest.mark.parametrize("rows", [1, 5, 700])
@pytest.mark.parametrize("gated", [True, False])
def test_experts_equal_the_plain_path(rows, gated, width, hidden, monkeypatch):
    torch.manual_seed(rows)
    experts, top_k = 5, 3
    index = torch.randint(-1, experts - 1, (rows, top_k))  # the last expert has no row
    drawn = [
        torch.randn(rows, width),
        torch.randn(experts, width, hidden) / width**0.5,
        torch.randn(experts, hidden, width) / hidden**0.5,
        torch.rand(rows, top_k),
    ]

    def compute():
        x, up, down, gate = inputs = [one.clone().requires_grad_() for one in drawn]
        given = gate if gated else None
        dispatch = Dispatch.from_indices(index, experts)
        mapped = expert_mlp(x, up, down, dispatch, gate=given)
        summed = expert_linear(x, up, dispatch, slots_per_input=top_k, gate=given)
        loss = mapped.square().sum() + summed.square().sum()
        used = inputs if gated else inputs[:3]
        sorted_slots = (dispatch.order, dispatch.counts, dispatch.offsets)
        return sorted_slots, (mapped, summed, *torch.autograd.grad(loss, used))

    order, got = compute()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(got, compute()[1], strict=True))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(native, "why_not", lambda: "a test does without")
    plain_order, expected = compute()
    assert all(torch.equal(a, b) for a, b in zip(order, plain_order, strict=True))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("keys", "size", "groups"), [(1, 16, 4), (11, 41, 2), (16, 8, 1), (130, 128, 4), (300, 130, 2)]
)
@pytest.mark.parametrize("relative", [False, True])
def test_one_query_a_row_attends_as_a_sequence_does_to_the_bit(keys, size, groups, relative):
    stored = torch.randn(2, 3, groups, keys + 5, size)
    key, value = stored[..., :keys, :]
    query, bias = torch.randn(3, 4, 1, size), torch.randn(3, 1, 1, keys)
    bias[..., keys // 2 + 1 :] = float("-inf")
    terms: tuple[Tensor | None, ...] = (None, None, None)
    if relative:
        terms = (torch.randn(4, size), torch.randn(4, size), torch.randn(keys, 4, size))
    attention = functools.partial(torch.ops.moeut_native.attention, query, key, value)
    whole = attention(bias, *terms, 0.0, 0.3, False)  # that of sequences, as gradients are recorded
    with torch.no_grad():
        assert torch.equal(attention(bias, *terms, 0.0, 0.3, False), whole)
        first = attention(None, *terms, 0.0, 0.3, True)  # causal: sees the first key alone
    assert torch.equal(first, value[:, :, :1].repeat_interleave(4 // groups, dim=1))
