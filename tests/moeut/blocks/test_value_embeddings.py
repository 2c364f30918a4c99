"""Vectors of tokens that join the values of self-attention."""

import pytest
import torch

import moeut
from moeut.blocks.value_embeddings import ValueEmbedding, ValueEmbeddings
from moeut.options import OptionError

ALTERNATE = ValueEmbeddings(layers="alternate", channels=5)


@torch.no_grad()
def test_what_joins_the_values():
    torch.manual_seed(0)
    block = ValueEmbedding(7, 6, 2, 3).double()
    block.weight.normal_()
    block.gate.normal_()
    tokens, x = torch.tensor([[4, 1]]), torch.randn(1, 2, 8).double()
    found = block(tokens, x)  # (B, G, T, d)
    for column, token in enumerate((4, 1)):
        for head in range(2):
            gate = 2 / (1 + (-(block.gate[head] @ x[0, column, :3])).exp())
            wanted = gate * block.weight[token, 3 * head : 3 * head + 3]
            assert (found[0, head, column] - wanted).abs().max() < 1e-14


def test_which_layers_have_them():
    assert ALTERNATE.of(4) == (1, 3)
    assert ALTERNATE.of(5) == (0, 2, 4)
    assert ValueEmbeddings().of(4) == ()
    assert ValueEmbeddings(layers="listed", list=(2,)).of(4) == (2,)
    with pytest.raises(OptionError, match="list=None: missing; layers=listed needs it"):
        ValueEmbeddings(layers="listed")
    with pytest.raises(OptionError, match="has no effect with layers=alternate"):
        ValueEmbeddings(layers="alternate", list=(1,))


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder", "encoder_classifier"])
@pytest.mark.parametrize("attention", ["dense", "switch_head"])
def test_they_are_trained_counted_and_cached(make_model, form, attention):
    model = make_model(form, attention=attention, value_embeddings=ALTERNATE, prelude=1)
    tokens = torch.arange(12).remainder(11).view(2, 6)
    output = model(tokens, tokens) if form == "encoder_decoder" else model(tokens)
    output.logits.square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if "value_embeddings" in n}
    assert len(found) == 4 * (1 + (form == "encoder_decoder"))
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    assert moeut.count_parameters(model.config) == sum(p.numel() for p in model.parameters())
    if form == "decoder_lm":
        with torch.no_grad():
            cache = model.eval().new_cache()
            steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(6)]
            assert (torch.cat(steps, 1) - model(tokens).logits).abs().max() < 1e-12


def test_prelude_and_coda_may_be_wider(make_model):
    model = make_model(feed_forward="dense", prelude=1, coda=1, outer_width=9)
    widths = [layer.feed_forward.up.out_features for layer in model.decoder.layers]
    assert widths == [9, 32, 32, 9]
    plain = make_model(feed_forward="dense", prelude=1, coda=1)
    cost = [moeut.macs_per_token(m.config, sequence_length=4) for m in (plain, model)]
    assert cost[0] - cost[1] == 2 * 2 * 16 * (32 - 9)
