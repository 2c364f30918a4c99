"""Short attention in C++ against the same in float64, step by step."""

import pytest
import torch

from moeut.blocks.attention.brief import serves_attention, short_attention
from moeut.blocks.positions.base import RelativeTerms
from moeut.ops import native

pytestmark = pytest.mark.skipif(
    native.why_not() is not None, reason=f"no C++ operations: {native.why_not()}"
)


def defined(query, key, value, *, scale, bias, is_causal, relative, factors):
    """Return what ``short_attention`` does, with the factors of dropout given."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    if relative is None:
        logits = query @ key.mT
    else:
        content, position, table = relative
        scores = (query + position[:, None]) @ table.permute(1, 2, 0)  # (B, H, T, W)
        queries, keys = query.shape[2], key.shape[2]
        column = torch.arange(keys) - torch.arange(queries)[:, None] + queries - 1
        logits = (query + content[:, None]) @ key.mT
        logits = logits + scores.gather(-1, column.expand(*scores.shape[:2], -1, -1))
    logits = logits * scale
    if bias is not None:
        logits = logits + bias
    if is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(future, float("-inf"))
    return (logits.softmax(-1) * factors) @ value


CASES = {
    "one token": {"queries": 1, "keys": 1},
    "cross": {"queries": 5, "keys": 19, "bias": True},
    "causal": {"queries": 20, "keys": 20, "is_causal": True},
    "relative": {"queries": 9, "keys": 9, "relative": True, "bias": True},
    "relative, cached": {"queries": 3, "keys": 33, "relative": True},
    "relative, causal, dropout": {
        **{"queries": 17, "keys": 17, "relative": True},
        **{"is_causal": True, "dropout": 0.3},
    },
    "grouped keys": {"queries": 18, "keys": 35, "key_heads": 2},
}


def make(queries, keys, key_heads=4, *, relative=False, bias=False, is_causal=False, dropout=0.0):
    torch.manual_seed(3)
    batch, heads, size = 3, 4, 10
    # As projections leave them: (B, T, H, d) in memory.
    drawn = [
        torch.randn(batch, length, count, size).transpose(1, 2)
        for length, count in ((queries, heads), (keys, key_heads), (keys, key_heads))
    ]
    terms = None
    if relative:
        shapes = ((heads, size), (heads, size), (queries + keys, heads, size))
        terms = RelativeTerms(*(torch.randn(shape) for shape in shapes))
    added = None
    if bias:
        added = torch.zeros(batch, 1, 1, keys)
        added[1, ..., keys // 2 :] = float("-inf")
    return drawn, {"bias": added, "is_causal": is_causal, "relative": terms}, dropout


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_the_definition(name):
    drawn, options, dropout = make(**CASES[name])
    terms = options.pop("relative") or ()
    inputs = [one.requires_grad_() for one in (*drawn, *terms)]
    shape = (3, 4, drawn[0].shape[2], drawn[1].shape[2])
    relative = RelativeTerms(*inputs[3:]) if terms else None
    # With the unit matrix as values the result is the weights, which show what was dropped.
    unit = torch.eye(shape[-1]).expand(*drawn[1].shape[:2], -1, -1)
    about = {"scale": 0.3, **options, "relative": relative}
    torch.manual_seed(5)
    seen = short_attention(*inputs[:2], unit, **about, dropout=dropout).detach() != 0
    factors = seen / (1 - dropout)
    if dropout:
        allowed = shape[0] * shape[1] * shape[2] * (shape[3] + 1) / 2  # causal
        assert int(seen.sum()) / allowed == pytest.approx(1 - dropout, abs=0.05)
    torch.manual_seed(5)
    got = short_attention(*inputs[:3], scale=0.3, **options, relative=relative, dropout=dropout)
    gradient = torch.randn(got.shape)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    expected = defined(
        *exact[:3], scale=0.3, **options, relative=exact[3:] or None, factors=factors.double()
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    pairs = zip(
        torch.autograd.grad(got, inputs, gradient),
        torch.autograd.grad(expected, exact, gradient.double()),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_a_bias_that_hides_later_keys_gives_the_bits_of_a_causal_mask():
    (query, key, value), _, _ = make(40, 40)
    later = torch.ones(40, 40, dtype=torch.bool).triu(1)
    bias = torch.zeros(1, 1, 40, 40).masked_fill(later, float("-inf"))
    causal = short_attention(query, key, value, scale=0.3, is_causal=True)
    assert torch.equal(short_attention(query, key, value, scale=0.3, bias=bias), causal)
    bias[..., 7, :] = float("-inf")  # a softmax over nothing is NaN, as PyTorch's
    hidden = short_attention(query, key, value, scale=0.3, bias=bias)
    assert hidden[..., 7, :].isnan().all()
    assert torch.equal(hidden[..., 8:, :], causal[..., 8:, :])


def test_weights_below_the_smallest_float_are_zero_and_nan_stays():
    query = torch.tensor([[[[1.0]]]])
    key, value = torch.tensor([[[[0.0], [-200.0]]]]), torch.tensor([[[[3.0], [torch.inf]]]])
    # exp(-200) rounds to 0 in float32, and 0 · inf is NaN: what PyTorch returns, too.
    assert short_attention(query, key, value, scale=1.0).isnan().all()
    value[..., 1, 0] = 7.0
    assert short_attention(query, key, value, scale=1.0).item() == 3.0


def test_what_it_does_not_know_is_left_to_others():
    (query, key, value), _, _ = make(4, 4)
    assert serves_attention(query, key, value, None)
    assert not serves_attention(query, key, value, torch.zeros(3, 4, 4, 4))  # a bias of each head
    assert not serves_attention(query, key, value, torch.zeros(3, 1, 4, 4, requires_grad=True))
    assert not serves_attention(query.double(), key, value, None)
    long = torch.randn(1, 1, 300, 8)
    assert not serves_attention(long, long, long, None)
