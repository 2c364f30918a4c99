"""Tokens that take no part cost nothing; what others compute is the same without packing."""

import itertools
import statistics
import time

import pytest
import torch
from recurrent_cases import BLOCKS, FORMS, batch, loss_of, real_logits

import moeut
from moeut.blocks.packing import Packing
from moeut.recurrence.controller import Controller, Run
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.passing import Passing

REPEATS = 4


class Some(Controller):
    """Tokens take part by a table (repeats, B, T), whose first repeat has them all."""

    def __init__(self, table, alone=False):
        super().__init__()
        self.table, self.alone, self.start = table, alone, 0

    def begin(self, about):
        length = about.embedded.shape[1]
        table = self.table[:, :, self.start : self.start + length]
        if about.real is not None:
            table = table & about.real
        return SomeRun(table, self.alone)


class SomeRun(Run):
    def __init__(self, table, alone):
        self.table, self.alone = table, alone
        self.repeat = -1

    def before(self, place, step):
        if place.repeat != self.repeat:
            self.repeat, self.active = place.repeat, self.table[place.repeat]
        return step._replace(active=self.active, is_alone=self.alone)


def table(rows=3, length=12, seed=1):
    """Return who takes part: everyone, most, one row not at all, and a third."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(REPEATS, rows, length, generator=generator)
    taking_part = chances < torch.tensor([1.0, 0.7, 0.6, 0.3])[:, None, None]
    taking_part[2, 1] = False
    return taking_part


def with_some(model, alone=False):
    for stack in (getattr(model, name, None) for name in ("encoder", "decoder")):
        if stack is not None:
            stack.controllers["some"] = Some(table(), alone)
    return model


@pytest.fixture
def whole(monkeypatch):
    """Return a switch that has every application compute all tokens."""

    def switch(is_on):
        monkeypatch.undo()
        if is_on:
            monkeypatch.setattr(Passing, "_pack", lambda *_: None)

    return switch


CASES = {
    "experts": BLOCKS["experts"],
    "dense": BLOCKS["dense"] | {"norm": "pre"},
    "relative": BLOCKS["experts"] | {"position": "absolute_gate"},
    "geometric": {"attention": "geometric", "feed_forward": "softmax", "position": "none"},
    "fire": {"attention": "dense", "feed_forward": "dense", "position": "fire"},
    "gates": {"attention": "gates", "feed_forward": "dense", "position": "sinusoidal"},
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_packed_tokens_compute_what_all_would(make_model, whole, case, form, alone):
    """Logits, losses and gradients; padded rows, and a row that takes no part in a repeat."""
    model = with_some(make_model(form, repeats=REPEATS, coda=1, **CASES[case]), alone).train()
    arguments, masks = batch(model)
    found = []
    for is_whole in (True, False):
        whole(is_whole)
        model.zero_grad()
        output = model(*arguments, **masks)
        loss_of(model, output).backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        found.append((real_logits(model, output), output.auxiliary_loss, gradients))
    assert (found[0][0] - found[1][0]).abs().max() < 1e-11
    assert (found[0][1] - found[1][1]).abs() < 1e-12
    for name, gradient in found[0][2].items():
        assert torch.allclose(gradient, found[1][2][name], rtol=0, atol=1e-10), name


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", ["prefix_length", "document_numbers"])
def test_prefixes_and_documents(make_model, whole, kind, alone):
    model = with_some(make_model(repeats=REPEATS, position="absolute_gate"), alone).eval()
    other = with_some(make_model(repeats=REPEATS), alone).eval()
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2], [0] * 6])
    given = {"prefix_length": torch.tensor([2, 0, 4]), "document_numbers": numbers}[kind]
    for one in (model, other):
        tokens = batch(one)[0][0]
        logits = []
        for is_whole in (True, False):
            whole(is_whole)
            logits.append(one(tokens, **{kind: given}).logits)
        assert (logits[0] - logits[1]).abs().max() < 1e-11


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_cache_equals_the_whole_pass(make_model, case, alone):
    model = with_some(make_model(repeats=REPEATS, **CASES[case]), alone).eval()
    tokens = batch(model, width=12)[0][0]
    whole = model(tokens).logits
    cache, steps = model.new_cache(), []
    some = model.decoder.controllers["some"]
    for start, end in itertools.pairwise([0, 5, 6, 7, 10, 11, 12]):
        some.start = start
        steps.append(model(tokens[:, start:end], cache=cache).logits)
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-11


def test_who_is_hidden_has_no_say(make_model):
    """Alone, the states of others do not matter; else they do."""
    for alone in (True, False):
        model = with_some(make_model(repeats=2, group=1), alone).eval()
        stack = model.decoder
        stack.controllers["some"].table = torch.ones(2, 1, 6, dtype=torch.bool)
        stack.controllers["some"].table[1, :, 2] = False
        x = torch.randn(1, 6, 16).double()
        begun = stack(x, Inputs(trace=True)).hidden[1]
        changed = begun.clone()
        changed[:, 2] += 1.0

        class From(Run):
            def __init__(self, state):
                self.state = state

            def after(self, place, step, x):
                return self.state if place.repeat == 0 else x

        results = []
        for state in (begun, changed):
            stack.controllers["from"] = _Fixed(From(state))
            results.append(stack(x).states[:, [0, 1, 3, 4, 5]])
        # Keys and values are those of the first repeat, before the change.
        assert (results[0] - results[1]).abs().max() < 1e-12
        everyone = stack.controllers["some"].table
        stack.controllers["some"].table = torch.ones_like(everyone)
        del stack.controllers["from"]
        assert (stack(x).states[:, [3]] - results[0][:, [2]]).abs().max() > 1e-4


class _Fixed(Controller):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def begin(self, about):
        return self.run


def test_checkpointing_is_exact(make_model):
    model = with_some(make_model(repeats=REPEATS)).train()
    arguments, masks = batch(model)
    gradients = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        loss_of(model, model(*arguments, **masks)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def _half(blocks):
    config = moeut.architecture(
        "universal",
        form="decoder_lm",
        vocabulary_size=5,
        d_model=256,
        depth={"group": 1, "repeats": 6},
        **blocks,
    )
    stack = moeut.build(config).decoder.eval()
    half = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    active = half.expand(6, 8, 64).clone()
    active[0] = True
    return stack, active


SIZES = {
    "dense": {"feed_forward": {"kind": "dense", "hidden_size": 1024}},
    "experts": {
        "attention": {"kind": "switch_head", "num_experts": 4},
        "feed_forward": {"kind": "sigma_moe", "num_experts": 16, "expert_size": 64},
    },
}


@pytest.mark.parametrize("blocks", SIZES)
def test_half_the_tokens_take_little_more_than_half_the_time(blocks):
    """Of five repeats, with half of the tokens at random, on one core."""
    stack, active = _half(SIZES[blocks])
    x = torch.randn(8, 64, 256)

    times = {True: [], False: []}
    with torch.no_grad():
        for _ in range(9):  # in turn, since caches are shared with what else runs
            for everyone, table in ((True, torch.ones_like(active)), (False, active)):
                stack.controllers["some"] = Some(table)
                begun = time.process_time()  # what other processes do does not count
                stack(x)
                times[everyone].append(time.process_time() - begun)
    whole, half = (statistics.median(times[everyone]) for everyone in (True, False))
    assert (half - whole / 6) / (whole - whole / 6) < 0.8


def test_a_layer_is_applied_to_active_tokens_alone():
    stack, active = _half(SIZES["dense"])
    stack.controllers["some"] = Some(active)
    tokens = []
    hook = lambda _, inputs: tokens.append(inputs[0].shape[:2].numel())  # noqa: E731
    stack.layers[0].register_forward_pre_hook(hook)
    stack(torch.randn(8, 64, 256))
    assert tokens == active.flatten(1).sum(1).tolist()


def test_tokens_are_packed_anew_where_someone_has_left_alone(monkeypatch):
    stack, active = _half(SIZES["dense"])
    active[3:, 0, active[1, 0].nonzero()[0]] = False
    stack.controllers["some"] = Some(active)
    packed, make = [], Packing.of_mask
    monkeypatch.setattr(Packing, "of_mask", lambda mask: packed.append(mask) or make(mask))
    stack(torch.randn(8, 64, 256))
    assert [int(mask.sum()) for mask in packed] == [int(active[n].sum()) for n in (1, 3)]
