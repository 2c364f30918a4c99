"""A relaxed model of full rank starts as the distinct layers that it is made from."""

import dataclasses

import pytest
import torch

import moeut
from moeut.blocks.own import Adapters, Own
from moeut.recurrence.schedule import Depth
from moeut.relaxing import relax

ALL = {"query": True, "key": True, "value": True, "output": True, "feed_forward": True}
DENSE = {"attention": "dense", "feed_forward": "dense", "norm": "pre"}


def _pair(make_model, order, rank=16):
    distinct = make_model(group=6, repeats=1, **DENSE).eval()
    own = Own(norms=True, adapters=Adapters(rank=rank, scaling=3.0, **ALL))
    depth = Depth(prelude=1, group=2, repeats=2, coda=1, order=order)
    return distinct, dataclasses.replace(distinct.config, depth=depth, own=own)


@pytest.mark.parametrize("order", ["cycle", "sequence"])
def test_full_rank_is_the_model_itself(make_model, order):
    """But for the biases of the feed-forward, which are shared."""
    distinct, config = _pair(make_model, order)
    with torch.no_grad():
        for name, parameter in distinct.named_parameters():
            if "feed_forward" in name and name.endswith("bias"):
                parameter.fill_(0.1)
    tokens = torch.arange(12).view(2, 6) % 11
    wanted = distinct(tokens).logits
    assert (relax(distinct, config).eval()(tokens).logits - wanted).abs().max() < 1e-10
    published = relax(distinct, config, adapters="as_published").eval()
    assert (published(tokens).logits - wanted).abs().max() > 1e-2


def test_what_does_not_fit_is_refused(make_model):
    distinct, config = _pair(make_model, "cycle")
    short = make_model(group=5, repeats=1, **DENSE)
    with pytest.raises(ValueError, match="expected a model of 6 distinct layers, got"):
        relax(short, config)
    assert moeut.count_parameters(config) == sum(
        p.numel() for p in relax(distinct, config).parameters()
    )
