"""What of the recurrence a loss is taken of: repeats, random depths, passes of a carried state."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from runners.config.objective import ObjectiveConfig
from runners.config.run_file import read_run
from runners.config.schema import ConfigError
from runners.process.ranks import World
from runners.training.batches import IGNORE
from runners.training.criterion import Where, progressive_weight
from runners.training.depth import depth_of_step
from runners.training.experiment import build
from runners.training.loop import build_criterion
from runners.training.supervision import (
    Rules,
    row_losses,
    stablemax_cross_entropy,
    value_of_going_on,
)

CPU = torch.device("cpu")
LOOP = ("model.state={start: zero, injection: add}", "model.depth.repeats=4")
SMALL_TRM = (
    "model.depth.repeats=2",
    "model.recursion.low_cycles=1",
    "model.carry.steps=4",
    "model.feed_forward.hidden_size=8",
    "model.attention.num_heads=2",
    "train.objective={kind: deep_supervision, exploration: 0.5}",
)


@pytest.fixture
def make_loop(make_run, loop_of):
    def make(*overrides, architecture="universal", form="encoder_classifier", **changes):
        plain = ("model.dropout=0.0", "evaluate.interval=null")
        directory = make_run("loop", *plain, *overrides, form=form, architecture=architecture)
        return loop_of(directory, **changes)

    return make


def first_part(loop):
    rows = loop.order.rows(0)
    return loop.columns.batch(rows, device=CPU), Where(3, np.arange(len(rows)), True)


def plain_loss(loop, part, **depth):
    call = lambda *arguments, **named: loop.model(*arguments, **named, **depth)  # noqa: E731
    return loop.objective.loss(call, part).cross_entropy_sum.item()


@pytest.mark.parametrize("form", ["encoder_classifier", "decoder_lm"])
@pytest.mark.parametrize(("weights", "last"), [("uniform", None), ("linear", None), ("linear", 3)])
def test_every_repeat_counts_for_its_weight(form, weights, last, make_loop):
    objective = ObjectiveConfig(kind="every", weights=weights, last=last)
    loop = make_loop(*LOOP, form=form, objective=objective)
    part, where = first_part(loop)
    found = loop.criterion.loss(loop.objective, loop.model, part, where).cross_entropy_sum.item()
    depths = [1, 2, 3, 4] if last is None else [2, 3, 4]
    shares = [1.0] * len(depths) if weights == "uniform" else depths
    each = [plain_loss(loop, part, num_repeats=depth) for depth in depths]
    wanted = sum(s * loss for s, loss in zip(shares, each, strict=True)) / sum(shares)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert len({round(loss, 6) for loss in each}) == len(each)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_progressive_mixes_a_full_and_a_random_depth(alpha, make_loop):
    loop = make_loop(*LOOP, objective=ObjectiveConfig(kind="progressive", alpha=alpha))
    part, where = first_part(loop)
    without, last = loop.criterion.draw(where.step)
    found = loop.criterion.loss(loop.objective, loop.model, part, where).cross_entropy_sum.item()
    full = plain_loss(loop, part, num_repeats=4, backprop_repeats=2)
    early = plain_loss(loop, part, num_repeats=without + last, backprop_repeats=last)
    assert found == pytest.approx((1 - alpha) * full + alpha * early, rel=1e-6)
    draws = [loop.criterion.draw(step) for step in range(300)]
    assert {n for n, _ in draws} == {0, 1, 2, 3}
    assert {k for _, k in draws} == {1, 2}
    assert max(n + k for n, k in draws) == 4


def test_the_full_pass_of_progressive_has_gradients_in_half_of_it(make_loop):
    loop = make_loop(*LOOP, objective=ObjectiveConfig(kind="progressive", alpha=0.0))
    part, where = first_part(loop)
    call = functools.partial(loop.model, num_repeats=4, backprop_repeats=2)
    losses = [
        loop.criterion.loss(loop.objective, loop.model, part, where),
        loop.objective.loss(call, part),
    ]
    parameters = list(loop.model.parameters())
    found, wanted = (
        torch.autograd.grad(loss.cross_entropy_sum, parameters, allow_unused=True)
        for loss in losses
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_what_a_progressive_gradient_counts_for():
    assert progressive_weight(8, 2) == (1 + 1) / 2  # half of those with gradient
    assert progressive_weight(4, 4) == (1 + 1) / 4  # a fourth of all


DRAWN = "train.repeats={kind: poisson_lognormal, mean: 5, longest: 8}"


def gradients_of(loop, step=0):
    """Return the loss of the first batch in a step, and the gradients that it gives."""
    part, where = first_part(loop)
    depth = depth_of_step(loop.config, seed=0, step=step, rows=len(part.rows))
    call = functools.partial(loop.model, **depth.call)
    loss = loop.criterion.loss(loop.objective, call, part, where._replace(step=step))
    loop.model.zero_grad()
    loss.cross_entropy_sum.backward()
    gradients = {n: p.grad.clone() for n, p in loop.model.named_parameters() if p.grad is not None}
    return loss.cross_entropy_sum.item(), gradients, depth.call.get("num_repeats")


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"weights": "gradient"}, lambda repeats: 1 / min(repeats, 3)),
        ({"weights": "depth"}, lambda repeats: (repeats + 1) / 3),  # half of 5, rounded down, is 2
        ({"weights": "depth", "exponent": 0.5}, lambda repeats: ((repeats + 1) / 3) ** 0.5),
    ],
)
def test_the_gradient_of_a_step_counts_for_its_depth(options, weight, make_loop):
    """And the loss of the log is the loss itself."""
    overrides = (*LOOP, DRAWN, "train.backprop_repeats=3")
    plain = make_loop(*overrides)
    weighed = make_loop(*overrides, objective=ObjectiveConfig(kind="last", **options))
    depths = set()
    for step in range(6):
        loss, expected, repeats = gradients_of(plain, step)
        other, found, _ = gradients_of(weighed, step)
        assert other == loss
        for name, gradient in expected.items():
            scaled = weight(repeats) * gradient
            torch.testing.assert_close(found[name], scaled, rtol=1e-5, atol=1e-6)
        depths.add(weight(repeats))
    assert len(depths) > 1


def test_a_progressive_gradient_counts_for_its_repeats_with_gradient(make_loop):
    plain, weighed = (
        make_loop(*LOOP, objective=ObjectiveConfig(kind="progressive", weights=weights))
        for weights in ("uniform", "gradient")
    )
    (loss, expected, _), (other, found, _) = gradients_of(plain, 3), gradients_of(weighed, 3)
    assert other == loss
    for name, gradient in expected.items():  # of 4 repeats, 2 have a gradient
        torch.testing.assert_close(found[name], gradient * (1 + 1) / 2, rtol=1e-5, atol=1e-6)


def run_steps(loop, count):
    """Do some updates; return rows, passes and halted places of each, and the last gradients."""
    seen = []
    for _ in range(count):
        loop.advance()
        kept = loop.criterion
        seen.append((loop.rows.tolist(), kept.steps.tolist(), kept.halted.tolist()))
    return seen, {n: p.grad.clone() for n, p in loop.model.named_parameters()}


@pytest.mark.parametrize("architecture", ["trm", "hrm"])
def test_rows_keep_their_place_until_they_halt(architecture, make_loop):
    loop = make_loop(*SMALL_TRM, architecture=architecture)
    with torch.no_grad():
        loop.model.halt_head.bias.copy_(torch.tensor([0.3, 0.0]))  # halts unless it explores
    seen, _ = run_steps(loop, 12)
    for index, (rows, steps, halted) in enumerate(seen):
        previous = seen[index - 1] if index else None
        for place, row in enumerate(rows):
            begins = previous is None or previous[2][place]
            assert begins or row == previous[0][place]
            assert steps[place] == (1 if begins else previous[1][place] + 1)
            assert steps[place] <= 4
            assert halted[place] or place in loop.criterion.states or index < len(seen) - 1
            assert not (steps[place] == 4 and not halted[place])
    assert len({tuple(rows) for rows, _, _ in seen}) > 1
    assert any(step > 1 for _, steps, _ in seen for step in steps)
    assert any(step == 1 and h for _, s, hs in seen for step, h in zip(s, hs, strict=True))


@pytest.mark.parametrize("architecture", ["trm", "hrm"])
def test_after_its_only_pass_every_row_halts(architecture, make_loop):
    """And learns whether it was right, but not what going on would be worth."""
    loop = make_loop(*SMALL_TRM, "model.carry.steps=1", architecture=architecture)
    seen, gradients = run_steps(loop, 3)
    assert all(set(steps) == {1} and all(halted) for _, steps, halted in seen)
    halts, goes_on = gradients["halt_head.bias"].tolist()
    assert halts != 0.0 == goes_on


def test_parts_of_a_batch_are_the_whole_batch(make_loop):
    """As ranks are, which take the same places."""
    whole, wanted = run_steps(make_loop(*SMALL_TRM, architecture="trm", accumulate=1), 6)
    parts, found = run_steps(make_loop(*SMALL_TRM, architecture="trm", accumulate=3), 6)
    assert parts == whole
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8, msg=name)


@dataclasses.dataclass(frozen=True)
class Half(World):
    """One of two ranks, whose states are gathered by hand."""

    def gather(self, value):
        return [value]


def test_what_two_ranks_keep_one_goes_on_with(make_loop):
    loop = make_loop(*SMALL_TRM, architecture="trm")
    run_steps(loop, 5)
    kept, found = loop.criterion, []
    for rank in range(2):
        one = build_criterion(loop.config, loop.model.config, seed=0)
        world = Half(rank=rank, size=2)
        one.load_state_dict(kept.state_dict(World()))
        own = np.concatenate(world.pieces(np.arange(len(one.rows)), loop.config.accumulate))
        one.states = {place: state for place, state in one.states.items() if place in own}
        found += one.state_dict(world)["ranks"]
    other = build_criterion(loop.config, loop.model.config, seed=0)
    other.load_state_dict({"ranks": found})
    assert other.rows.tolist() == kept.rows.tolist()
    assert other.steps.tolist() == kept.steps.tolist()
    assert other.halted.tolist() == kept.halted.tolist()
    assert other.states.keys() == kept.states.keys()
    assert kept.states
    assert all(torch.equal(other.states[place], kept.states[place]) for place in kept.states)


def test_carried_states_reach_the_next_step(make_loop):
    """A loop that forgets them would read other states, and have another loss."""
    losses = []
    for forgets in (False, True):
        loop = make_loop(*SMALL_TRM, architecture="trm", learning_rate=0.1)
        loop.advance()
        if forgets:
            zeros = {place: torch.zeros_like(s) for place, s in loop.criterion.states.items()}
            loop.criterion.states = zeros
        losses.append(loop.advance()["loss"])
    assert abs(losses[0] - losses[1]) > 1e-6


def test_losses_of_a_row_are_their_formulas():
    """Of two rows, of which one has a target less, and is right."""
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    best = logits.argmax(-1)
    targets = torch.stack((best[0].where(torch.tensor([True, False, True]), IGNORE), 3 - best[1]))
    halting = torch.tensor([[0.3, -0.2], [0.7, 1.1]]).double()
    value = torch.tensor([0.25, 0.5]).double()
    rules = Rules(most=3, loss="softmax", halting="value")
    found = row_losses(logits, halting, targets, rules=rules, next_value=value)
    p = logits.softmax(-1)
    first = -(p[0, 0, best[0, 0]].log() + p[0, 2, best[0, 2]].log()) / 2
    second = -sum(p[1, t, 3 - best[1, t]].log() for t in range(3)) / 3
    assert (found.answer - torch.stack((first, second))).abs().max() < 1e-12
    assert found.is_right.tolist() == [True, False]
    sure, on = halting.sigmoid().unbind(1)
    right = torch.tensor([1.0, 0.0]).double()
    wanted = -right * sure.log() - (1 - right) * (1 - sure).log()
    wanted = wanted - value * on.log() - (1 - value) * (1 - on).log()
    assert (found.halting - wanted / 2).abs().max() < 1e-12
    # After the last pass but one nothing is left but to halt.
    worth = value_of_going_on(halting, torch.tensor([2, 3]), rules=rules)
    assert (worth - torch.stack((sure[0], sure[1]))).abs().max() < 1e-12
    worth = value_of_going_on(halting, torch.tensor([2, 2]), rules=rules)
    assert (worth - torch.stack((sure[0], on[1]))).abs().max() < 1e-12


def test_stablemax_is_that_of_the_paper_and_has_finite_gradients():
    logits = torch.tensor([[1.0, -2.0, 0.0, 3.0]], requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor([1]))
    sizes = [2.0, 1 / 3, 1.0, 4.0]
    assert loss.item() == pytest.approx(-np.log(sizes[1] / sum(sizes)), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    exact = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(
        lambda x: stablemax_cross_entropy(x, torch.tensor([0, -100, 4])), exact.requires_grad_()
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("train.objective.kind=deep_supervision",),
            r"objective.kind='deep_supervision'.*carry\.steps=1",
        ),
        (("train.objective.kind=every", "model.halting=act"), "halting.kind=act decides"),
        (("train.objective.kind=every", "train.objective.last=9"), r"last=9.*depth\.repeats=2"),
        (("train.objective.kind=progressive",), r"encoder: needs model\.state\.injection"),
        (("train.objective={kind: last, alpha: 0.1}",), "alpha=0.1.*kind last does not take it"),
        (("train.objective={kind: last, weights: linear}",), "one of uniform, gradient, depth"),
        (("train.objective={kind: last, weights: depth}",), r"depth needs repeats\.mean"),
        (("train.objective={kind: last, exponent: 2}",), "exponent=2.*only with weights depth"),
        (
            (
                "train.objective={kind: last, weights: gradient}",
                "train.repeats={kind: poisson, mean: 3, per: sequence}",
            ),
            "rows need one depth",
        ),
        (
            ("train.objective={kind: last, gate_steps: 2}",),
            "gate_steps=2.*exit_gate, not none",
        ),
        (
            ("train.objective={kind: last, gate_steps: 2}", "model.halting=ponder"),
            "kind=exit_gate, not ponder",
        ),
        (("train.objective={kind: last, gate_steps: 99}",), "gate_steps=99.*at most steps=12"),
    ],
)
def test_what_a_model_cannot_serve_is_refused(overrides, said, tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text(form="encoder_classifier", architecture="universal"))
    with pytest.raises(ConfigError, match=said):
        build(read_run(file, overrides))


def test_a_head_that_would_never_learn_is_refused(tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text(form="encoder_classifier", architecture="trm"))
    overrides = (*SMALL_TRM[:-1], "train.objective.kind=last")
    with pytest.raises(ConfigError, match=r"carry\.halting learns by deep_supervision alone"):
        build(read_run(file, overrides))
