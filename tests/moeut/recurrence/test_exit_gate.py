"""Exit gates and PonderNet: distributions, penalties, and where tokens leave."""

import dataclasses
import itertools
import math

import pytest
import torch
from recurrent_cases import FORMS, REPEATS, batch

import moeut
from moeut.options import OptionError
from moeut.recurrence import exits
from moeut.recurrence.exit_gate import ExitGate, Ponder


def _by_hand(lambdas):
    """Return p of one token, by the definition."""
    found, there = [], 1.0
    for n, rate in enumerate(lambdas):
        found.append(there if n == len(lambdas) - 1 else there * rate)
        there *= 1 - rate
    return found


def _logits(*shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


def test_probabilities_are_the_definition():
    logits = _logits(7, 5)
    p = exits.log_probabilities(logits).exp()
    for row, lambdas in zip(p, logits.sigmoid().tolist(), strict=True):
        assert row.tolist() == pytest.approx(_by_hand(lambdas), abs=1e-14)
    assert exits.log_probabilities(torch.tensor([200.0, 200.0, 0.0])).isfinite().all()
    draw = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert exits.first_drawn(draw).tolist() == [1, 2, 0]
    assert exits.first_passed(torch.tensor([0.5, 0.3, 0.2]).log(), 0.7).tolist() == 1
    assert exits.first_passed(torch.tensor([0.5, 0.3, 0.19]).log(), 1.0).tolist() == 2


def test_penalties_are_the_definition():
    logits = _logits(4)
    p = _by_hand(logits.sigmoid().tolist())
    log_p = exits.log_probabilities(logits)
    entropy = -sum(x * math.log(x) for x in p)
    assert ExitGate(entropy_weight=0.3).penalty(log_p).item() == pytest.approx(-0.3 * entropy)
    prior = [0.2 * 0.8**n for n in range(4)]
    for normalised, direction in itertools.product((True, False), ("to_prior", "from_prior")):
        q = [x / sum(prior) for x in prior] if normalised else prior
        pairs = zip(p, q, strict=True) if direction == "to_prior" else zip(q, p, strict=True)
        options = Ponder(loss_weight=0.5, divergence=direction, normalised_prior=normalised)
        wanted = 0.5 * sum(a * math.log(a / b) for a, b in pairs)
        assert options.penalty(log_p).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("options", [ExitGate(), Ponder(), Ponder(divergence="from_prior")])
def test_penalties_have_the_gradient_of_their_definition(options):
    logits = _logits(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: options.penalty(exits.log_probabilities(z)), (logits,)
    )


GATE = {"initial_bias": -0.5, "halted": "update"}


def make(make_recurrent, form="decoder_lm", halting=None, **options):
    halting = ExitGate(**GATE) if halting is None else halting
    return make_recurrent(form, "act", "dense", halting=halting, **options)


def with_halting(model, **options):
    """Return the same model with other options of its gate."""
    halting = dataclasses.replace(model.config.halting, **options)
    other = moeut.build(dataclasses.replace(model.config, halting=halting)).double()
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_training_gives_the_expected_state_and_the_mean_penalty(make_recurrent):
    model = make(make_recurrent, coda=0).train()
    arguments, masks = batch(model)
    output = model(*arguments, **masks, trace=True)
    states, mask = torch.stack(output.repeats["decoder"], -2), masks["padding_mask"]
    unit = model.decoder.controllers["halting"]
    logits = states @ unit.weight[0] + unit.bias
    rows = [[_by_hand(t) for t in row] for row in logits.sigmoid().tolist()]
    p = torch.tensor(rows, dtype=torch.float64)
    wanted = (states * p.unsqueeze(-1)).sum(-2)
    wanted = model.head(model.decoder.final_norm(wanted), model.embedding.weight)
    assert (output.logits - wanted).abs().max() < 1e-12
    penalty = -0.05 * -(p * p.log()).sum(-1)
    mean = ((penalty * mask).sum(1) / mask.sum(1)).mean()
    assert output.auxiliary_loss.item() == pytest.approx(mean.item(), abs=1e-13)
    record = output.decisions["decoder"]
    assert (record["halting.log_probability"].exp() - p).abs().max() < 1e-12
    steps = (p * torch.arange(1, REPEATS + 1)).sum(-1) * mask
    assert (record["halting.repeats"] - steps).abs().max() < 1e-12
    same = with_halting(model, evaluate="expected")(*arguments, **masks).logits
    assert (same - output.logits).abs().max() < 1e-12


@pytest.mark.parametrize("rule", [{"threshold": 0.6}, {"exit_at": 1}, {"evaluate": "sample"}, {}])
def test_a_token_leaves_with_its_state_at_the_exit(make_recurrent, rule):
    model = make(make_recurrent, coda=0)
    arguments, masks = batch(model)
    whole = model.train()(*arguments, **masks, trace=True)
    states = torch.stack(whole.repeats["decoder"], -2)  # (B, T, N, D)
    log_p = whole.decisions["decoder"]["halting.log_probability"]
    output = with_halting(model, **rule)(*arguments, **masks)
    taken = output.decisions["decoder"]["halting.repeats"]
    mask = masks["padding_mask"]
    if "threshold" in rule:
        assert torch.equal(taken[mask], exits.first_passed(log_p, 0.6)[mask] + 1)
    if "exit_at" in rule or not rule:
        assert taken[mask].unique().tolist() == [rule.get("exit_at", REPEATS - 1) + 1]
    else:
        assert len(taken[mask].unique()) > 1
    index = (taken - 1).clamp_min(0)[..., None, None].expand(-1, -1, 1, states.shape[-1])
    wanted = model.head(
        model.decoder.final_norm(states.gather(2, index).squeeze(2)), model.embedding.weight
    )
    assert (output.logits - wanted)[mask].abs().max() < 1e-12
    assert not taken[~mask].any()


@pytest.mark.parametrize("form", FORMS)
def test_training_reads_all_repeats_with_their_shares(make_recurrent, form):
    """An encoder whose decoder reads it is read by no loss: its decoder is."""
    model = make(make_recurrent, form).train()
    arguments, masks = batch(model)
    output = model(*arguments, **masks)
    assert output.repeat_shares.shape == (*output.logits.shape[:-1], REPEATS)
    assert (output.repeat_shares.sum(-1) - 1).abs().max() < 1e-12
    stack = "encoder" if form == "encoder_classifier" else "decoder"
    p = output.decisions[stack]["halting.log_probability"].exp()
    assert torch.equal(output.repeat_shares, p[:, 0] if stack == "encoder" else p)
    read = model(*arguments, **masks, read_repeats=range(REPEATS))
    assert read.repeat_shares is None
    for ours, wanted in zip(output.repeat_logits, read.repeat_logits, strict=True):
        assert torch.equal(ours, wanted)
    assert not output.repeats.get("encoder" if stack == "decoder" else "none")
    assert model.eval()(*arguments, **masks).repeat_shares is None


def test_draws_follow_the_probabilities(make_recurrent):
    """Of many tokens with one λ, a share p_n leaves after repeat n."""
    model = make(make_recurrent, halting=Ponder(initial_bias=-0.5, halted="update"), group=1)
    with torch.no_grad():
        model.decoder.controllers["halting"].weight.zero_()
    taken = model.eval()(torch.zeros(1, 4000).long()).decisions["decoder"]["halting.repeats"]
    found = taken[0].bincount(minlength=REPEATS + 1)[1:] / 4000
    wanted = _by_hand([1 / (1 + math.exp(0.5))] * REPEATS)
    assert (found - torch.tensor(wanted)).abs().max() < 0.03


def test_exited_tokens_stay_as_they_were(make_recurrent):
    model = make(make_recurrent, coda=0)
    arguments, masks = batch(model)
    outputs = {
        halted: with_halting(model, halted=halted, threshold=0.5)(*arguments, **masks, trace=True)
        for halted in ("freeze", "update")
    }
    taken = outputs["freeze"].decisions["decoder"]["halting.repeats"]
    left = (taken < REPEATS) & masks["padding_mask"]
    assert left.any()
    for halted, output in outputs.items():
        before, last = output.repeats["decoder"][-2:]
        moved = (taken < REPEATS - 1) & left
        assert moved.any()
        assert torch.equal(before[moved], last[moved]) == (halted == "freeze")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0: must be above 0 and at most 1"),
        ({"exit_at": -1}, "exit_at=-1: must be a whole number of at least 0"),
        ({"entropy_weight": -1.0}, "entropy_weight=-1.0: must be a finite number"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        ExitGate(**options)
    with pytest.raises(OptionError, match=r"prior=1.0: must be above 0 and below 1"):
        Ponder(prior=1.0)
