"""Rows of a pass with depths of their own are the rows alone, each at its depth."""

import pytest
import torch
from recurrent_cases import ACT, FORMS, batch, loss_of, state
from torch._dynamo.testing import CompileCounter

from moeut.recurrence.controller import Step
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.row_depth import RowDepth, RowDepthRun
from moeut.recurrence.schedule import Place

FIRST, LAST = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 2])
DEPTH = RowDepth(FIRST, LAST)
LONGEST = {"num_repeats": 4, "backprop_repeats": 2}
LONGER = {"num_repeats": 8, "backprop_repeats": 3}


def gradients(model, *arguments, rows=slice(None), **options):
    model.zero_grad()
    output = model(*arguments, **options)
    loss = loss_of(model, output, rows)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("form", "blocks"), [("decoder_lm", "experts"), *((form, "dense") for form in FORMS)]
)
def test_a_row_is_the_row_alone_at_its_depth(make_recurrent, form, blocks):
    """In value and in gradient, and in a pass of more repeats than any row needs."""
    model = make_recurrent(form, "input_linear", blocks).train()
    arguments, masks = batch(model)
    losses, wanted = 0.0, {}
    for row in range(3):
        first, last = FIRST[row].item(), LAST[row].item()
        rows = slice(row, row + 1)
        alone, mask = batch(model, rows)
        deep = {"num_repeats": first + last, "backprop_repeats": last}
        shares = {"row_shares": torch.ones(1)} if form == "decoder_lm" else {}
        loss, found = gradients(model, *alone, rows=rows, **mask, **deep, **shares)
        losses += loss
        wanted = {n: wanted.get(n, 0) + g for n, g in found.items()}
    shares = {"row_shares": torch.ones(3)} if form == "decoder_lm" else {}
    for size in (LONGEST, LONGER):
        loss, found = gradients(model, *arguments, **masks, **size, **shares, row_depth=DEPTH)
        assert loss == pytest.approx(losses, abs=1e-10)
        for name, gradient in wanted.items():
            assert torch.allclose(found[name], gradient, rtol=0, atol=1e-9), name
    other = RowDepth(FIRST + 1, LAST - 1)  # as deep, but more of it without gradient
    loss, found = gradients(model, *arguments, **masks, **LONGEST, **shares, row_depth=other)
    name = "embedding.weight"
    assert (found[name] - wanted[name]).abs().max() > 1e-4


@pytest.mark.parametrize("blocks", ["dense", "experts"])
def test_a_token_that_waits_is_read_in_the_state_it_waits_with(make_recurrent, blocks):
    model = make_recurrent("decoder_lm", "input_linear", blocks, prelude=0, coda=0).train()
    tokens = batch(model)[0][0]
    generator = torch.Generator().manual_seed(2)
    first = torch.randint(0, 3, tokens.shape, generator=generator)
    last = torch.randint(0, 3, tokens.shape, generator=generator)
    output = model(tokens, **LONGEST, row_depth=RowDepth(first, last), trace=True)
    states, stack = output.repeats["decoder"], model.decoder
    x = model.embedding(tokens)
    for repeat in range(4):
        through = stack_once(stack, x, model.embedding(tokens))
        moves = first > repeat if repeat < 2 else last > repeat - 2
        x = torch.where(moves.unsqueeze(-1), through, x)
        assert (states[repeat] - x).abs().max() < 1e-11
    assert not states[1].requires_grad
    assert states[2].requires_grad


def stack_once(stack, x, embedded):
    """Return the state after one repeat from x; the input enters as ``embedded``."""
    return stack(embedded, Inputs(num_repeats=1, initial_state=x, trace=True)).repeats[0]


def test_which_repeat_a_row_is_in():
    """Its own count goes on where the part with gradient begins."""
    x = torch.zeros(3, 1, 2)
    run = RowDepthRun(DEPTH, x.shape[:2], 2)
    seen = []
    for repeat in range(4):
        place = Place(repeat, 0, repeat, 4, True, True)
        step = run.before(place, Step(x))
        seen.append(step.number[step.active].tolist())
    assert seen == [[0, 0], [1], [2, 0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 1}, r"row_depth: no layer is repeated \(depth.repeats=1\)"),
        ({"order": "sequence"}, "row_depth: depth.order=sequence has no repeat"),
        ({"halting": ACT}, "row_depth: halting.kind=act decides"),
    ],
)
def test_stacks_that_have_one_depth_refuse(make_recurrent, options, message):
    plain = {"state": state("input", "none")} | options
    model = make_recurrent("decoder_lm", "input_linear", **plain)
    with pytest.raises(ValueError, match=message):
        model(batch(model)[0][0], row_depth=DEPTH)


def test_shapes_are_checked(make_recurrent):
    model = make_recurrent("decoder_lm", "input_linear")
    tokens = batch(model)[0][0]
    with pytest.raises(
        ValueError, match=r"row_depth.first: expected whole numbers of shape \(3,\)"
    ):
        model(tokens, row_depth=RowDepth(FIRST[:2], LAST))
    with pytest.raises(ValueError, match="a cache holds one depth"):
        model(tokens, cache=model.new_cache(), row_depth=DEPTH)


def test_one_graph_serves_every_depth(make_recurrent):
    """A static pass is compiled once, and has the gradients of the pass of the drawn depth."""
    small = {"prelude": 0, "group": 1, "coda": 0}
    model = make_recurrent("decoder_lm", "input_linear", "dense", **small).float().train()
    tokens = batch(model)[0][0]
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for first, last in ((2, 2), (0, 1), (1, 2)):
        depth = RowDepth(torch.full((3,), first), torch.full((3,), last))
        drawn = {"num_repeats": first + last, "backprop_repeats": last}
        _, wanted = gradients(model, tokens, **drawn)
        model.zero_grad()
        output = compiled(tokens, **LONGEST, row_depth=depth)
        loss_of(model, output).backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter.grad, wanted[name], atol=1e-3, rtol=1e-3), name
    assert counter.frame_count == 1
