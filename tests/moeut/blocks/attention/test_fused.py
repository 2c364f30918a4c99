"""Attention in C++ against the same in float64, step by step."""

import pytest
import torch

from moeut.blocks.attention import fused
from moeut.blocks.attention.fused import long_attention, serves_attention, short_attention
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


def make(
    queries, keys, key_heads=4, *, size=10, relative=False, bias=False, is_causal=False, dropout=0.0
):
    torch.manual_seed(3)
    batch, heads = 3, 4
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
    assert not serves_attention(query, key, value[..., 1:], None)


# --- long rows -----------------------------------------------------------------------------------

LONG_CASES = {
    "causal": {"queries": 203, "keys": 203, "is_causal": True},
    "cross, padded": {"queries": 97, "keys": 131, "bias": True},
    "one block, wide heads": {"queries": 96, "keys": 64, "size": 131},
    "few queries, grouped keys": {"queries": 5, "keys": 200, "key_heads": 2, "size": 41},
    "causal, dropout, grouped keys": {
        **{"queries": 150, "keys": 150, "key_heads": 1},
        **{"is_causal": True, "dropout": 0.3},
    },
}


@pytest.mark.parametrize("name", LONG_CASES)
def test_long_results_and_gradients_are_those_of_the_definition(name):
    drawn, options, dropout = make(**LONG_CASES[name])
    del options["relative"]
    inputs = [one.requires_grad_() for one in drawn]
    about = {"scale": 0.3, **options}
    unit = torch.eye(drawn[1].shape[2]).expand(*drawn[1].shape[:2], -1, -1)
    torch.manual_seed(5)
    factors = (long_attention(*inputs[:2], unit, **about, dropout=dropout) != 0) / (1 - dropout)
    torch.manual_seed(5)
    got = long_attention(*inputs, **about, dropout=dropout)
    gradient = torch.randn(got.shape)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    expected = defined(*exact, **about, relative=None, factors=factors.double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(got, inputs, gradient)
    wanted = torch.autograd.grad(expected, exact, gradient.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    # The bounds are tight enough to see one key more or less: the last is hidden.
    hiding = torch.zeros(1, 1, 1, drawn[1].shape[2])
    hiding[..., -1] = float("-inf")
    options["bias"] = hiding if options["bias"] is None else options["bias"] + hiding
    changed = defined(*exact, scale=0.3, **options, relative=None, factors=factors.double())
    assert float((got - changed).detach().abs().max()) > 1e-3


def test_dropout_of_long_rows_drops_independently():
    (query, key, _), _, _ = make(192, 320)
    unit = torch.eye(320).expand(3, 4, -1, -1)
    torch.manual_seed(8)
    kept = (long_attention(0 * query, key, unit, scale=1.0, dropout=0.3) != 0).float()
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.003)
    centred = kept.sub(0.7).flatten()
    for distance in (1, 16, 64, 320, 192 * 320):  # lanes, blocks, queries, heads
        together = float((centred[distance:] * centred[:-distance]).mean())
        assert abs(together) < 5 * 0.21 / 737280**0.5


def bits_of(query, key, value, **about):
    """Return the result of long attention and the three gradients of its squares."""
    inputs = [one.detach().requires_grad_() for one in (query, key, value)]
    result = long_attention(*inputs, scale=0.3, **about)
    return [result.detach(), *torch.autograd.grad((result**2).sum(), inputs)]


def test_bits_of_long_rows_do_not_depend_on_what_is_beside_them():
    (query, key, value), _, _ = make(170, 170)
    alone = bits_of(query, key, value, is_causal=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        shared = bits_of(query, key, value, is_causal=True)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, shared))
    of_row = bits_of(query[1:2], key[1:2], value[1:2], is_causal=True)
    assert all(torch.equal(one[1:2], other) for one, other in zip(alone, of_row, strict=True))
    # Keys of one row and head for all, in one place in memory, with values of each.
    common = key[:1, :1].expand_as(key)
    spread = bits_of(query, common.contiguous(), value, is_causal=True)
    assert all(map(torch.equal, bits_of(query, common, value, is_causal=True), spread))
    later = torch.ones(170, 170, dtype=torch.bool).triu(1)
    bias = torch.zeros(1, 1, 170, 170).masked_fill(later, float("-inf"))
    assert all(map(torch.equal, alone, bits_of(query, key, value, bias=bias)))
    # Padding behind the keys, here of 30, changes nothing.
    bias = torch.zeros(3, 1, 1, 170)
    bias[..., 140:] = float("-inf")
    padded = bits_of(query, key, value, bias=bias)
    short = bits_of(query, key[:, :, :140], value[:, :, :140])
    for one, other in zip(padded, short, strict=True):
        assert torch.equal(one[:, :, : other.shape[2]], other)
    assert not padded[2][:, :, 140:].any()


def test_a_query_of_a_long_row_that_sees_no_key_has_zeros():
    (query, key, value), _, _ = make(100, 130)
    bias = torch.zeros(3, 1, 100, 130)
    bias[..., :70] = float("-inf")  # the first block and more is hidden from all
    seen = bits_of(query, key, value, bias=bias)
    bias[1] = bias[:, :, 7] = float("-inf")
    hidden = bits_of(query, key, value, bias=bias)
    for one in hidden:
        assert one.isfinite().all()
        assert not one[1].any()
    assert not hidden[0][:, :, 7].any()
    assert not hidden[1][:, :, 7].any()
    assert torch.equal(hidden[0][::2, :, 8:], seen[0][::2, :, 8:])
    query[0, 0, 3, 0] = float("nan")  # is not hidden
    assert long_attention(query, key, value, scale=0.3, bias=bias)[0, 0, 3].isnan().all()


def test_rows_beyond_the_bound_are_long_ones(monkeypatch):
    (query, key, value), _, _ = make(40, 40)
    about = (None, True, None, None, 0.0)
    short = fused.attend(query, key, value, *about)
    monkeypatch.setattr(fused, "MAX_CELLS", 40 * 40 - 1)
    long = fused.attend(query, key, value, *about)
    assert torch.equal(long, long_attention(query, key, value, scale=10**-0.5, is_causal=True))
    torch.testing.assert_close(long, short, rtol=1e-5, atol=1e-6)
    assert not torch.equal(long, short)
    few = fused.MIN_LONG_QUERIES - 1  # and distances are PyTorch's
    monkeypatch.setattr(fused, "MAX_CELLS", 0)
    assert fused.attend(query[:, :, :few], key, value, None, False, *about[2:]) is None
    assert fused.attend(query, key, value, None, False, torch.zeros(40, 40), None, 0.0) is None
