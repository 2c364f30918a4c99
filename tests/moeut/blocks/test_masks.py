import pytest
import torch

from moeut.blocks import masks


def test_causal_sees_the_past_and_the_prefix():
    allowed = masks.causal(torch.arange(4), 4, torch.tensor([0, 3]))[:, 0]
    assert allowed[0].tolist() == torch.ones(4, 4).tril().bool().tolist()
    assert allowed[1].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_causal_follows_each_row():
    allowed = masks.causal(torch.tensor([[1], [3]]), 4)
    assert allowed.shape == (2, 1, 1, 4)
    assert allowed[:, 0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_row_without_real_keys_sees_all_of_them():
    allowed = masks.real_keys(torch.tensor([[True, False], [False, False]]))
    assert allowed[:, 0, 0].tolist() == [[True, False], [True, True]]


def test_additive_is_zero_or_minus_infinity_in_the_dtype_attention_runs_in():
    allowed = torch.tensor([True, False])
    like = torch.zeros(1)
    assert masks.additive(allowed, like).tolist() == [0.0, float("-inf")]
    assert masks.additive(None, like) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert masks.additive(allowed, like).dtype == torch.bfloat16
        assert masks.additive(allowed, like.double()).dtype == torch.float64


def test_check_mask_drops_a_mask_that_says_nothing():
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    full = torch.ones(2, 3, dtype=torch.bool)
    assert masks.check_mask(full, tokens, "m") is None
    full[1, 2] = False
    assert masks.check_mask(full, tokens, "m") is full
    with pytest.raises(ValueError, match=r"m.dtype=torch.int64: expected torch.bool"):
        masks.check_mask(tokens, tokens, "m")
    with pytest.raises(ValueError, match=r"m.shape=\(1, 3\)"):
        masks.check_mask(full[:1], tokens, "m")


def test_padding_before_a_real_token_is_refused():
    masks.check_right_padded(torch.tensor([[True, True, False], [False, False, False]]), "m")
    with pytest.raises(ValueError, match="pad on the right"):
        masks.check_right_padded(torch.tensor([[True, False, True]]), "m")


def test_a_prefix_beyond_its_row_is_refused():
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    masks.check_prefix(torch.tensor([2, 3]), mask, tokens)
    with pytest.raises(ValueError, match="a prefix is longer than its row"):
        masks.check_prefix(torch.tensor([3, 3]), mask, tokens)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        masks.check_prefix(torch.tensor([1]), mask, tokens)
