"""Exits that need no training: criteria as published, and where tokens leave by them."""

import pytest
import torch
from recurrent_cases import FORMS, REPEATS, batch
from safetensors.torch import load_file

from moeut.options import OptionError
from moeut.recurrence.exit_rules import THRESHOLDS, ExitRule, Seen, measure

PUBLISHED = {name.replace("min_p", "minp").replace("_", "-"): name for name in THRESHOLDS}


def test_measures_are_their_formulas():
    """Of one token: its states and logits after two repeats."""
    torch.manual_seed(0)
    begun, one, two = torch.randn(3, 5).double()
    logits = [torch.tensor([2.0, 0.0, 1.5, -9.0]), torch.tensor([1.0, 2.0, 0.5, -9.0])]
    p, q = (each.double().softmax(-1) for each in logits)
    level_p, level_q = p.clone(), q.clone()
    level_p[3] = level_q[3] = 0.25  # below a tenth of the largest
    level_p, level_q = level_p / level_p.sum(), level_q / level_q.sum()
    uniform = torch.full((4,), 0.25).double()

    def entropy(p):
        return -(p * (p + 1e-10).log()).sum()

    def divergence(p, q):
        return (p * (p / q).log()).sum()

    def angle(x, y):
        return 1 - (x @ y) / (x.norm() * y.norm())

    wanted = {
        "entropy_diff": (100 - entropy(p), (entropy(q) - entropy(p)).abs()),
        "latent_diff": ((one - begun).norm() / one.norm(), (two - one).norm() / two.norm()),
        "cosine": (angle(begun, one), angle(one, two)),
        "kl": (divergence(uniform, p), divergence(p, q)),
        "min_p_kl": (divergence(uniform, level_p), divergence(level_p, level_q)),
        "argmax_stability": (0, 0),
    }
    assert wanted.keys() == THRESHOLDS.keys()
    for criterion, measures in wanted.items():
        seen = Seen(begun)
        for state, given, value in zip((one, two), logits, measures, strict=True):
            now = Seen(state, given.double())
            found = measure(criterion, now, seen)
            assert abs(found - value) < 1e-12, criterion
            seen = now._replace(stable=found)
    stable = now._replace(stable=torch.tensor(4.0))
    other = now._replace(logits=logits[0].double())
    assert measure("argmax_stability", now, stable) == 5
    assert measure("argmax_stability", other, stable) == 0


@pytest.mark.golden
def test_measures_are_those_of_published_code(golden_dir):
    """That code takes the last position, and the mean over positions of what reads states."""
    compared = 0
    for path in sorted((golden_dir / "huginn").glob("*.safetensors")):
        t = load_file(path)
        for published, criterion in PUBLISHED.items():
            theirs = t.get(f"exit.{published}")
            if theirs is None:
                continue
            bound = 1e-10 if t["logits"].dtype == torch.float64 else 1e-5
            seen = Seen(t["initial_state"])
            for step, wanted in enumerate(theirs, start=1):
                now = Seen(t[f"state.{step}"], t[f"step_logits.{step}"])
                value = measure(criterion, now, seen)
                seen = now._replace(stable=value)
                reads_states = not ExitRule(criterion=criterion).reads_logits
                ours = value.mean(1) if reads_states else value[:, -1]
                assert (ours - wanted).abs().max() <= bound * max(1, wanted.abs().max()), criterion
                compared += 1
    assert compared


@pytest.mark.parametrize("criterion", THRESHOLDS)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_token_leaves_at_the_first_repeat_that_the_rule_says(make_recurrent, form, criterion):
    # A coda mixes what tokens of different exits read out.
    coda = int(ExitRule(criterion=criterion).reads_logits)
    model = make_recurrent(form, "zero_add", "dense", coda=coda).eval()
    arguments, masks = batch(model)
    whole = model(*arguments, **masks, trace=True, read_repeats=range(REPEATS))
    stack = "encoder" if form == "encoder_classifier" else "decoder"
    states, mask = whole.repeats[stack], next(reversed(masks.values()))
    seen, values = Seen(torch.zeros_like(states[0])), []
    for state, logits in zip(states, whole.repeat_logits, strict=True):
        now = Seen(state, logits)
        values.append(measure(criterion, now, seen))
        seen = now._replace(stable=values[-1])
    values = torch.stack(values)
    # Half of the tokens leave after the second repeat.
    second = (values[1][mask] if values.dim() == 3 else values[1]).sort().values
    middle = second[second.numel() // 2 - 1 :][:2].mean().item()
    threshold = 1.0 if criterion == "argmax_stability" else middle
    rule = ExitRule(criterion=criterion, threshold=threshold, halted="update")
    leaves = rule.leaves(values)
    leaves[-1] = True
    wanted = leaves.int().argmax(0) + 1
    if wanted.dim() == 1:
        wanted = wanted.unsqueeze(1).expand_as(mask)
    model.exit_rule = rule
    output = model(*arguments, **masks)
    taken = output.decisions[stack]["exit.repeats"]
    assert torch.equal(taken, wanted * mask)
    assert len(taken[mask].unique()) > 1 or criterion == "argmax_stability"
    logits = torch.stack(whole.repeat_logits)
    at = taken - 1
    if output.logits.dim() == 2:
        pooled = at[torch.arange(3), mask.int().argmax(1)]
        assert (output.logits - logits[pooled, torch.arange(3)]).abs().max() < 1e-11
    elif model.config.depth.coda == 0:
        index = at.clamp_min(0)[None, ..., None].expand(1, *logits.shape[1:])
        assert (output.logits - logits.gather(0, index)[0])[mask].abs().max() < 1e-11


@pytest.mark.parametrize("criterion", ["kl", "latent_diff"])
@torch.no_grad()
def test_decoding_with_a_cache_leaves_where_the_whole_pass_does(make_recurrent, criterion):
    threshold = {"kl": 0.3, "latent_diff": 0.5}[criterion]
    model = make_recurrent("decoder_lm", "input_linear", "experts", coda=0).eval()
    model.exit_rule = ExitRule(criterion=criterion, threshold=threshold)
    tokens = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(3))
    full = model(tokens)
    assert len(full.decisions["decoder"]["exit.repeats"].unique()) > 1
    cache, logits, taken = model.new_cache(), [], []
    for column in range(9):
        output = model(tokens[:, column : column + 1], cache=cache)
        logits.append(output.logits)
        taken.append(output.decisions["decoder"]["exit.repeats"])
    assert torch.equal(torch.cat(taken, 1), full.decisions["decoder"]["exit.repeats"])
    assert (torch.cat(logits, 1) - full.logits).abs().max() < 1e-11


def test_training_and_the_state_of_a_model_know_no_rule(make_recurrent):
    model = make_recurrent("decoder_lm", "zero_add", "dense").train()
    arguments, masks = batch(model)
    wanted = model(*arguments, **masks).logits
    model.exit_rule = ExitRule(criterion="cosine", threshold=3.0)
    assert torch.equal(model(*arguments, **masks).logits, wanted)
    model.eval()
    assert not torch.equal(model(*arguments, **masks).logits, wanted)


def test_a_gate_gives_way_and_other_halting_refuses(make_recurrent):
    model = make_recurrent("decoder_lm", "gate", "dense").eval()
    model.exit_rule = ExitRule(criterion="cosine", threshold=3.0)
    arguments, masks = batch(model)
    decisions = model(*arguments, **masks).decisions["decoder"]
    assert decisions["exit.repeats"][masks["padding_mask"]].unique().tolist() == [1]
    model = make_recurrent("decoder_lm", "act", "dense").eval()
    model.exit_rule = ExitRule(criterion="kl")
    with pytest.raises(ValueError, match=r"exit_rule: halting.kind='act' says itself who leaves"):
        model(*arguments, **masks)
    model = make_recurrent("decoder_lm", "zero_add", "dense").eval()
    model.exit_rule = ExitRule(criterion="kl")
    with pytest.raises(ValueError, match=r"exit_rule: kl reads states out.*depth.coda=1"):
        model(*arguments, cache=model.new_cache())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("klx", r"criterion='klx': expected one of entropy_diff, .*; did you mean 'kl'\?"),
        ("kl=low", "threshold='low': expected a number"),
        ("kl=-1", "threshold=-1.0: must be at least 0"),
    ],
)
def test_a_rule_is_read_from_a_word(text, message):
    with pytest.raises(OptionError, match=message):
        ExitRule.parse(text)
    assert ExitRule.parse("latent_diff") == ExitRule(criterion="latent_diff", threshold=0.03)
    assert ExitRule.parse("kl=1e-4").threshold == 1e-4
