"""One update: the gradients of the whole batch, and nothing spoilt by what is not finite."""

import dataclasses
import shutil
import threading

import numpy as np
import pytest
import torch

import moeut
from runners.config.schema import TrainConfig
from runners.process.generators import random_state, seed_everything, set_random_state
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory
from runners.training import parallel
from runners.training.batches import PaddedColumns
from runners.training.experiment import build
from runners.training.lengths import train_columns
from runners.training.loop import Loop, NonFinite

CPU = torch.device("cpu")
FORMS = [("encoder_decoder", "moeut"), ("decoder_lm", "moeut"), ("encoder_classifier", "moeut")]


@pytest.fixture
def make_loop(make_run, loop_of):
    def make(*overrides, form="encoder_decoder", architecture="moeut", **changes):
        plain = ("model.dropout=0.0", "evaluate.interval=null", *overrides)
        if architecture == "moeut":
            plain = (
                "model.feed_forward.expert_dropout=0.0",
                "model.feed_forward.balance_loss=0.5",
                *plain,
            )
        directory = make_run("loop", *plain, form=form, architecture=architecture)
        return loop_of(directory, **changes)

    return make


def gradients(loop):
    """Do one update and return the gradients that it used, and the row it gives."""
    row = loop.advance()
    return {n: p.grad.clone() for n, p in loop.model.named_parameters()}, row


@pytest.mark.parametrize(("form", "architecture"), FORMS)
def test_accumulated_gradients_are_those_of_the_whole_batch(form, architecture, make_loop):
    options = {"form": form, "architecture": architecture, "clip_norm": None}
    whole, row = gradients(make_loop(accumulate=1, **options))
    for parts in (2, 3, 8):
        split, split_row = gradients(make_loop(accumulate=parts, **options))
        assert split.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(split[name], whole[name], rtol=1e-6, atol=1e-9, msg=name)
        assert split_row == pytest.approx(row, rel=1e-6)
    assert row["auxiliary_loss"] != 0


SEQUENCES = "train.repeats={kind: poisson, mean: 3, per: sequence}"
TOKENS = "train.repeats={kind: uniform, low: 1, high: 3, per: token}"


@pytest.mark.parametrize(
    ("form", "repeats"), [("encoder_decoder", SEQUENCES), ("decoder_lm", TOKENS)]
)
def test_rows_keep_their_depth_in_any_part_of_a_batch(form, repeats, make_loop):
    overrides = (repeats, "model.state.injection=linear", "train.backprop_repeats=2")
    options = {"form": form, "architecture": "universal", "clip_norm": None}
    whole, row = gradients(make_loop(*overrides, accumulate=1, **options))
    split, split_row = gradients(make_loop(*overrides, accumulate=3, **options))
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-6, atol=1e-9, msg=name)
    assert split_row == pytest.approx(row, rel=1e-6)
    other, _ = gradients(make_loop(*overrides[1:], accumulate=1, **options))
    assert max((other[name] - whole[name]).abs().max() for name in whole) > 1e-4


def test_a_balancing_bias_follows_the_whole_batch(make_loop):
    """However many parts it is in, an empty one included, once for each update."""
    halting = "model.halting={kind: token_choice, balancing: bias, bias_rate: 0.01}"
    found = []
    for parts in (1, 3, 8):
        loop = make_loop(halting, form="decoder_lm", architecture="universal", accumulate=parts)
        for _ in range(3):
            loop.advance()
        biases = {n: p.clone() for n, p in loop.model.named_parameters() if n.endswith("ing.bias")}
        assert len(biases) == 1
        found.append(next(iter(biases.values())))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert found[0].abs().max() > 0.005


def test_two_ranks_read_the_places_of_one(make_loop):
    """So that a row has the depth that it has on one rank."""
    loop, found = make_loop(accumulate=2), []
    for rank in range(2):
        loop.world = World(rank=rank, size=2)
        share = loop._share(0)
        for (part, _), places in zip(share.parts, share.places, strict=True):
            assert part.rows.tolist() == share.rows[places].tolist()
            found += places.tolist()
    assert sorted(found) == list(range(len(share.rows)))


def test_parts_have_different_numbers_of_targets(make_loop):
    """Otherwise the test above could not tell a mean of means from the mean of the batch."""
    loop = make_loop()
    first, second = np.array_split(loop.order.rows(0), 2)
    parts = [loop.columns.batch(part, device=CPU) for part in (first, second)]
    assert parts[0].num_targets != parts[1].num_targets
    with torch.no_grad():
        losses = [loop.objective.loss(loop.model, part) for part in parts]
    each = [float(x.cross_entropy_sum) / p.num_targets for x, p in zip(losses, parts, strict=True)]
    mean = sum(float(x.cross_entropy_sum) for x in losses) / sum(p.num_targets for p in parts)
    assert abs(sum(each) / 2 - mean) > 1e-4


@pytest.mark.parametrize(("form", "architecture"), FORMS)
def test_every_parameter_is_trained(form, architecture, make_loop):
    loop = make_loop(form=form, architecture=architecture)
    found, _ = gradients(loop)
    assert found.keys() == dict(loop.model.named_parameters()).keys()


def test_a_step_is_computed_while_the_next_batch_is_loaded(make_loop, monkeypatch):
    """Each step waits here for the batch after it, which without prefetching nobody would load."""
    monkeypatch.setattr(PaddedColumns, "in_memory", False)
    loop = make_loop("train.steps=4", accumulate=1)
    loaded = [threading.Event() for _ in range(5)]
    make_batch, loss = loop.columns.batch, loop.objective.loss
    made = []

    def batch(rows, *, device):
        result = make_batch(rows, device=device)
        loaded[len(made)].set()
        made.append(threading.current_thread())
        return result

    def waiting_loss(*arguments, **named):
        step = loop.position.step
        assert step == 3 or loaded[step + 1].wait(30), f"batch {step + 1} is not being loaded"
        return loss(*arguments, **named)

    monkeypatch.setattr(type(loop.columns), "batch", lambda self, *a, **named: batch(*a, **named))
    monkeypatch.setattr(loop.objective, "loss", waiting_loss)
    for _ in range(4):
        loop.advance()
    assert len(made) == 4
    assert threading.main_thread() not in made


def test_rows_in_memory_are_batched_without_a_thread_on_a_cpu(make_loop, monkeypatch):
    loop = make_loop("train.steps=4", accumulate=1)
    make_batch, made = PaddedColumns.batch, []

    def batch(self, rows, *, device):
        made.append(threading.current_thread())
        return make_batch(self, rows, device=device)

    monkeypatch.setattr(PaddedColumns, "batch", batch)
    for _ in range(2):
        loop.advance()
    assert made == [threading.main_thread()] * 2


def test_the_average_follows_the_weights_from_the_first_ones_on(make_loop):
    """average ← m · average + (1 - m) · weights after each update, and training sees none of it."""
    loop, plain = make_loop(ema=0.75), make_loop()
    expected = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    for _ in range(4):
        assert loop.advance() == plain.advance()
        for name, parameter in loop.model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach()
    averaged = dict(loop.scored.named_parameters())
    weights = dict(plain.scored.named_parameters())
    for name, parameter in loop.model.named_parameters():
        torch.testing.assert_close(averaged[name], expected[name], rtol=1e-12, atol=1e-14)
        assert torch.equal(parameter, weights[name])
    moved = max((averaged[name] - weights[name]).abs().max() for name in weights)
    assert moved > 1e-3
    assert loop.scored is not loop.model
    assert plain.scored is plain.model


def test_loss_falls(make_loop):
    loop = make_loop("train.steps=60", form="encoder_classifier", architecture="transformer")
    losses = [loop.advance()["loss"] for _ in range(60)]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("form", "architecture"), FORMS)
def test_activation_checkpointing_changes_no_bit(form, architecture, precision, make_loop):
    """With dropout on: what is computed again draws the same numbers again."""
    dropout = ("model.dropout=0.2", "model.feed_forward.expert_dropout=0.2")
    results = []
    for is_on in (False, True):
        loop = make_loop(*dropout, form=form, architecture=architecture, precision=precision,
                         activation_checkpointing=is_on)  # fmt: skip
        loop.model.float()
        found, row = gradients(loop)
        results.append((found, row, torch.get_rng_state()))
    (plain, row, state), (recomputed, other, other_state) = results
    assert row == other
    assert row["auxiliary_loss"] != 0
    assert torch.equal(state, other_state)
    for name in plain:
        assert torch.equal(recomputed[name], plain[name]), name


def test_bfloat16_keeps_float32_weights_and_comes_near(make_run):
    directory = make_run("loop", "model.dropout=0.0", architecture="transformer")
    config = RunDirectory(directory).read_config()
    built = build(config)
    losses = {}
    for precision in ("float32", "bfloat16"):
        seed_everything(0)
        loop = Loop(
            dataclasses.replace(config.train, precision=precision),
            objective=built.objective,
            model=moeut.build(built.model_config),
            columns=train_columns(built.objective),
            seed=0,
            d_model=16,
            device=CPU,
        )
        losses[precision] = loop.advance()["loss"]
        assert {p.dtype for p in loop.model.parameters()} == {torch.float32}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_not_finite_loss_changes_nothing(make_loop):
    loop = make_loop(architecture="transformer")
    loop.advance()
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    position = dataclasses.asdict(loop.position)
    rows = sorted(loop.order.rows(1).tolist())
    forward = loop.objective.forward

    def infinite(model, batch):
        output = forward(model, batch)
        return dataclasses.replace(output, logits=output.logits * float("inf"))

    loop.objective.forward = infinite
    try:
        with pytest.raises(NonFinite) as caught:
            loop.advance()
    finally:
        del loop.objective.forward
    message = str(caught.value)
    assert message.startswith("step 2: loss nan")
    assert f"rows of the train split: {', '.join(map(str, rows))}; stopped" in message
    assert "learning rate 0.00" in message
    assert all(torch.equal(before[n], value) for n, value in loop.model.state_dict().items())
    assert dataclasses.asdict(loop.position) == position


def test_log_rows_are_means_since_the_row_before(make_loop):
    loop = make_loop(architecture="transformer")
    values = [loop.advance() for _ in range(3)]
    row = loop.log_row(values[-1])
    assert row["loss"] == pytest.approx(sum(value["loss"] for value in values) / 3)
    assert row["step"] == 3
    assert row["learning_rate"] == values[-1]["learning_rate"]
    value = loop.advance()
    assert loop.log_row(value)["loss"] == value["loss"]


def test_random_states_come_back():
    import random

    def draw():
        numbers = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002
        return (*numbers, random.gauss(0, 1), np.random.randn())  # noqa: NPY002

    seed_everything(5)
    draw()
    state = random_state()
    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first


def compiled_and_plain_gradients(device, dtype):
    """Return each weight's name and its two gradients, with the real compiler.

    What it fuses, other backends leave alone.
    """
    config = moeut.architecture(
        "sigma_moe", form="decoder_lm", vocabulary_size=50, d_model=32, depth={"group": 1},
        attention={"num_heads": 2}, feed_forward={"num_experts": 6, "expert_size": 16, "top_k": 2},
    )  # fmt: skip
    seed_everything(0)
    model = moeut.build(config).to(device, dtype)
    tokens = torch.randint(0, 50, (4, 64)).to(device)
    compiled = parallel.spread(model, TrainConfig(compile=True), World(), has_one_shape=True)
    expected, found = (
        torch.autograd.grad(output.logits.square().mean() + output.auxiliary_loss, weights)
        for output, weights in ((call(tokens), [*model.parameters()]) for call in (model, compiled))
    )
    names = [name for name, _ in model.named_parameters()]
    return zip(names, found, expected, strict=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++")
def test_a_compiled_model_has_the_gradients_of_the_plain_one():
    for name, one, other in compiled_and_plain_gradients("cpu", torch.float64):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_compiled_model_has_the_gradients_of_the_plain_one_on_a_gpu():
    for name, one, other in compiled_and_plain_gradients("cuda", torch.float32):
        assert (one - other).norm() <= 1e-4 * other.norm(), name
