"""Stick-breaking halting, against the recursion of the Sparse Universal Transformer."""

import pytest
import torch
from recurrent_cases import batch
from torch.nn import functional as F

from moeut.blocks.attention import AttentionContext
from moeut.options import OptionError
from moeut.recurrence.stick_breaking import StickBreaking


def make(make_recurrent, form="decoder_lm", blocks="dense", **options):
    halting = StickBreaking(**{"threshold": 0.8, "loss_weight": 0.3} | options.pop("halting", {}))
    sizes = {"prelude": 0, "coda": 0, "norm": "pre", "position": "none"}
    return make_recurrent(form, "act", blocks, halting=halting, **sizes | options)


def gate(unit, h, layer):
    up, down = unit.gates[layer].up, unit.gates[layer].down
    return (F.gelu(h @ up.weight.T + up.bias) @ down.weight.T).log_softmax(-1)


def recursion(model, x, options):
    """Return y, the loss of each token and the repeats it took part in, step by step."""
    stack, context = model.decoder, AttentionContext(is_causal=True)
    unit, group = stack.controllers["halting"], len(stack.layers)
    log_never, depth = torch.zeros(x.shape[:2]).double(), torch.zeros(x.shape[:2]).double()
    mean, loss = torch.zeros_like(x), torch.zeros(x.shape[:2]).double()
    taken, active = torch.ones(x.shape[:2]), torch.ones(x.shape[:2]).bool()
    h = y = stack.layers[0](x, context).x
    for i, layer in enumerate(stack.schedule()[1:]):
        goes_on, halts = gate(unit, h, layer).unbind(-1)
        p = (log_never + halts).exp()
        log_never = log_never + goes_on
        mean, depth = mean + p[..., None] * h, depth + i * p
        keep = log_never.exp()
        active = active & (keep >= 1 - options.threshold)
        keep = keep * active
        taken = taken + active
        moved = stack.layers[layer](h, context, key_value_source=y).x
        h = torch.where(active[..., None], moved, h)
        y = torch.where(active[..., None], mean + keep[..., None] * h, y)
        loss = loss + depth + keep * (i + 1)
    return y, loss, taken / group


@pytest.mark.parametrize(("group", "order"), [(1, "cycle"), (2, "cycle"), (2, "sequence")])
@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_halting_is_the_recursion(make_recurrent, group, order, threshold):
    halting = {"threshold": threshold}
    model = make(make_recurrent, group=group, order=order, halting=halting).train()
    tokens = batch(model)[0][0]
    output = model(tokens, trace=True)
    y, loss, taken = recursion(model, output.hidden["decoder"][0], model.config.halting)
    wanted = model.head(model.decoder.final_norm(y), model.embedding.weight)
    assert (output.logits - wanted).abs().max() < 1e-11
    assert output.auxiliary_loss.item() == pytest.approx(0.3 * loss.mean().item(), abs=1e-11)
    found = output.decisions["decoder"]["halting.repeats"]
    assert (found - taken).abs().max() < 1e-12
    assert (len(found.unique()) > 1) == (threshold < 1)
    plain = model(tokens)  # without a trace, tokens that take part are packed
    assert (plain.logits - output.logits).abs().max() < 1e-11


@pytest.mark.parametrize(
    ("blocks", "order"), [("dense", "cycle"), ("experts", "cycle"), ("experts", "sequence")]
)
@torch.no_grad()
def test_decoding_with_a_cache_is_the_full_pass(make_recurrent, blocks, order):
    model = make(
        make_recurrent,
        blocks=blocks,
        position="rotary",
        group=2,
        order=order,
        halting={"threshold": 0.97},
    )
    model.eval()
    tokens = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(3))
    full = model(tokens)
    assert len(full.decisions["decoder"]["halting.repeats"].unique()) > 2
    cache = model.new_cache()
    steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(9)]
    assert (torch.cat(steps, 1) - full.logits).abs().max() < 1e-11


def test_options_are_checked():
    with pytest.raises(OptionError, match=r"threshold=0.0: must be above 0 and at most 1"):
        StickBreaking(threshold=0.0)
    with pytest.raises(OptionError, match=r"loss_weight=-1.0: must be a finite number"):
        StickBreaking(loss_weight=-1.0)
