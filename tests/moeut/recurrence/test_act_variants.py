"""Published variants of adaptive computation time, against their recursions token by token."""

import itertools

import pytest
import torch
from recurrent_cases import REPEATS, batch

from moeut.options import OptionError
from moeut.recurrence.halting import AdaptiveComputationTime

VARIANTS = {
    "sum": {},
    "accumulated": {"halts_at_end": False},
    "basic": {"average": "running"},
    "basic_forced": {"average": "running", "halts_at_end": True},
    "basic_as_published": {"average": "tensor2tensor"},
    "global": {"average": "running", "decides": "row", "initial_bias": -0.1},
    "random": {"average": "running", "decides": "chance"},
}


def halting(**options):
    common = {"threshold": 0.9, "halted": "update", "cost": "ponder", "loss_weight": 0.3}
    return AdaptiveComputationTime(**common | {"initial_bias": -1.0} | options)


def model_of(make_recurrent, form="encoder_classifier", **options):
    options = {"prelude": 0, "coda": 0, "group": 1, "halting": halting(**options)}
    return make_recurrent(form, "act", "dense", **options, position="none").train()


def recursion(states, probabilities, options):
    """Return result, remainder and repeats of one token, as the codes write them down."""
    halt, remainder, updates, result = 0.0, 0.0, 0, torch.zeros_like(states[0])
    for repeat, (p, after) in enumerate(zip(probabilities, states[1:], strict=True)):
        if halt >= 1:
            break
        forced = options.halts_at_end and repeat == REPEATS - 1
        stops = forced or halt + p > options.threshold
        weight = 1 - halt if stops else p
        remainder += weight if stops else 0.0
        halt, updates = (1.0 if stops else halt + p), updates + 1
        kept = {"sum": result, "running": result * (1 - weight), "tensor2tensor": result - weight}
        result = after * weight + kept[options.average]
    return result, remainder, updates


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_its_recursion(make_recurrent, variant):
    model = model_of(make_recurrent, **VARIANTS[variant])
    options = model.config.halting
    (tokens,), masks = batch(model)
    torch.manual_seed(3)
    output = model(tokens, **masks, trace=True)
    states = output.hidden["encoder"]
    mask = masks["source_mask"]
    torch.manual_seed(3)
    p = torch.stack(probabilities(model, states, mask))  # (R, B, T)
    costs, results = torch.zeros(mask.shape).double(), torch.zeros_like(states[0])
    for row, column in itertools.product(*map(range, mask.shape)):
        if not mask[row, column]:
            continue
        token = [state[row, column] for state in states]
        result, remainder, updates = recursion(token, p[:, row, column], options)
        results[row, column], costs[row, column] = result, remainder + updates
        assert output.decisions["encoder"]["halting.repeats"][row, column] == updates
    wanted = model.head(model.encoder.final_norm(results)[:, 0], model.embedding.weight)
    assert (output.logits - wanted).abs().max() < 1e-11
    loss = 0.3 * (costs.sum(1) / mask.sum(1)).mean()
    assert output.auxiliary_loss.item() == pytest.approx(loss.item(), abs=1e-12)
    taken = output.decisions["encoder"]["halting.repeats"][mask]
    assert len(taken.unique()) > 1
    # Where the mean of a row decides, its tokens halt together; elsewhere some row has more.
    together = all(len(set(row[real].tolist())) == 1 for row, real in zip(
        output.decisions["encoder"]["halting.repeats"], mask, strict=True))  # fmt: skip
    assert together == (variant == "global")


def probabilities(model, states, mask):
    unit = model.encoder.controllers["halting"]
    if model.config.halting.decides == "chance":
        return _drawn(unit, states, mask)
    found = [(h @ unit.weight[0] + unit.bias).sigmoid() for h in states[:-1]]
    if model.config.halting.decides == "row":
        found = [((p * mask).sum(1) / mask.sum(1))[:, None].expand_as(p) for p in found]
    return found


def _drawn(unit, states, mask):
    from moeut.recurrence.controller import Pass
    from moeut.recurrence.schedule import Place

    about = Pass(states[0], torch.arange(mask.shape[1]), mask, REPEATS, False)
    places = [Place(i, 0, i, REPEATS, True, True) for i in range(REPEATS)]
    return [unit.probability(states[0], place, about) for place in places]


def test_chance_is_uniform_and_another_one_at_each_repeat(make_recurrent):
    unit = model_of(make_recurrent, decides="chance").encoder.controllers["halting"].eval()
    first, second = _drawn(unit, [torch.zeros(2, 4000, 8).double()], torch.ones(2, 4000))[:2]
    assert torch.equal(first[0], first[1])  # by position alone, in evaluation
    assert (first[0].sort().values - torch.linspace(0, 1, 4000)).abs().max() < 0.04
    assert abs(torch.corrcoef(torch.stack((first[0], second[0])))[0, 1]) < 0.05
    unit.train()
    drawn = _drawn(unit, [torch.zeros(2, 40, 8).double()], torch.ones(2, 40))[0]
    assert not torch.equal(drawn[0], drawn[1])
    assert not list(unit.parameters())


@pytest.mark.parametrize("cost", ["ponder", "ponder_without_gradient"])
def test_the_published_ponder_cost_trains_nothing(make_recurrent, cost):
    model = model_of(make_recurrent, cost=cost)
    arguments, masks = batch(model)
    loss = model(*arguments, **masks).auxiliary_loss
    assert loss > 0.3
    assert loss.requires_grad == (cost == "ponder")


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
def test_a_row_that_halts_as_one_is_refused_where_a_stack_looks_back(make_recurrent, form):
    with pytest.raises(OptionError, match=r"looks back alone: a row that halts as one"):
        model_of(make_recurrent, form, decides="row")


def test_the_halting_unit_learns_at_repeats_without_gradient_to_the_layers(make_recurrent):
    """Else a token that halts before the last repeats would train nothing at all."""
    early = AdaptiveComputationTime(threshold=0.5, initial_bias=-0.5, loss_weight=1.0)
    model = make_recurrent("decoder_lm", "act_noise_linear", halting=early).train()
    torch.manual_seed(0)
    arguments, masks = batch(model)
    output = model(*arguments, **masks, backprop_repeats=1)
    taken = output.decisions["decoder"]["halting.repeats"]
    assert (taken < REPEATS).any()
    halted = (taken < REPEATS) & masks["padding_mask"]
    unit = model.decoder.controllers["halting"]
    (gradient,) = torch.autograd.grad(
        output.decisions["decoder"]["halting.remainder"][halted].sum(), unit.weight
    )
    assert gradient.abs().max() > 1e-6
