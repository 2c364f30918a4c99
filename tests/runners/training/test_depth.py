"""The depth of a step: drawn alike by all, and what follows from it in training."""

import math

import numpy as np
import pytest
import torch

from runners.config.repeats import RepeatsConfig
from runners.config.run_file import from_yaml, read_run, to_yaml
from runners.config.schema import ConfigError, TrainConfig
from runners.training.batches import Batch
from runners.training.depth import StepDepth, depth_of_step, draw_of_tokens, draw_repeats
from runners.training.experiment import build

UNIFORM = RepeatsConfig(kind="uniform", low=2, high=5)
POISSON = RepeatsConfig(kind="poisson_lognormal", mean=6.0, sigma=0.5)


def draws(config, steps=20_000, seed=1):
    return np.array([draw_repeats(config, seed=seed, step=step) for step in range(steps)])


def test_uniform_draws_every_number_alike():
    numbers, counts = np.unique(draws(UNIFORM), return_counts=True)
    assert numbers.tolist() == [2, 3, 4, 5]
    assert np.abs(counts / 20_000 - 0.25).max() < 0.02


def test_poisson_lognormal_has_the_mean_and_variance_of_its_formula():
    """Var = E[rate] + Var[rate], with Var[rate] = mean² (exp(sigma²) - 1)."""
    found = draws(POISSON)
    assert found.min() >= 1
    assert found.mean() == pytest.approx(1 + 6, abs=0.1)
    variance = 6 + 36 * (math.exp(0.25) - 1)
    assert found.var() == pytest.approx(variance, rel=0.05)


def test_a_draw_depends_on_seed_and_step_alone():
    again = [draw_repeats(POISSON, seed=1, step=step) for step in (7, 3, 7)]
    assert again == [draws(POISSON, 8)[7], draws(POISSON, 8)[3], draws(POISSON, 8)[7]]
    assert draws(POISSON, 50, seed=2).tolist() != draws(POISSON, 50).tolist()


def test_a_fixed_depth_says_nothing_to_the_model():
    assert depth_of_step(TrainConfig(), seed=0, step=3) == StepDepth()
    config = TrainConfig(repeats=RepeatsConfig(kind="uniform", low=3, high=3), backprop_repeats=2)
    called = StepDepth({"num_repeats": 3, "backprop_repeats": 2})
    assert depth_of_step(config, seed=0, step=3) == called


def test_a_draw_does_not_depend_on_how_many_are_drawn_with_it():
    for kind in ("poisson", "poisson_lognormal"):
        config = RepeatsConfig(kind=kind, mean=5.0, per="token")
        short, long = (
            draw_of_tokens(config, seed=1, step=2, row=3, length=length) for length in (4, 9)
        )
        assert short.tolist() == long[:4].tolist()
        assert len(set(long.tolist())) > 2


def test_poisson_is_a_poisson_number_and_at_least_1():
    found = draws(RepeatsConfig(kind="poisson", mean=2.0))
    assert found.min() == 1
    zero = math.exp(-2.0)
    assert found.mean() == pytest.approx(2.0 + zero, abs=0.03)
    assert draws(RepeatsConfig(kind="poisson", mean=9.0, longest=7), 200).max() == 7


@pytest.mark.parametrize("kind", ["poisson_lognormal", "poisson"])
def test_published_draws_are_their_formula(kind):
    """In float32, by PyTorch's generator, seeded with the step and a number."""
    config = RepeatsConfig(kind=kind, mean=9.0, draws="published")
    for step in (0, 7):
        generator = torch.Generator().manual_seed(514229 + step)
        rate = torch.full((1,), 12.0)  # no mean is below the repeats with gradient
        if kind == "poisson_lognormal":
            rate = torch.zeros(1).log_normal_(math.log(12.0) - 0.5**2 / 2, 0.5, generator=generator)
        wanted = torch.poisson(rate, generator=generator).item()
        wanted = max(wanted, 1) if kind == "poisson" else 1 + wanted
        assert draw_repeats(config, seed=1, step=step, backprop_repeats=12) == wanted


def test_depth_grows_to_what_is_given():
    config = RepeatsConfig(kind="fixed", number=8, grow_steps=16)
    assert [draw_repeats(config, seed=0, step=step) for step in (0, 1, 2, 7, 15, 99)] == [
        *(1, 1, 2, 4, 8, 8)
    ]
    slow = RepeatsConfig(kind="uniform", low=1, high=9, grow_steps=100, growth="root")
    assert slow.grown(18) == pytest.approx(0.1, abs=1e-12)  # 1 - sqrt(1 - 19 / 100)
    assert max(draw_repeats(slow, seed=0, step=step) for step in range(19)) == 1
    assert max(draw_repeats(slow, seed=0, step=step) for step in range(200)) == 9


def test_rows_differ_and_a_static_depth_is_the_longest():
    rows = RepeatsConfig(kind="poisson", mean=4.0, longest=9, per="sequence")
    drawn = depth_of_step(TrainConfig(repeats=rows, backprop_repeats=3), seed=0, step=5, rows=40)
    assert drawn.rows is not None
    assert drawn.call == {"num_repeats": drawn.rows.max(), "backprop_repeats": 3}
    config = TrainConfig(repeats=rows, backprop_repeats=3, static_depth=True)
    static = depth_of_step(config, seed=0, step=5, rows=40)
    assert static.call == {"num_repeats": 9, "backprop_repeats": 3}
    assert static.rows is not None
    assert static.rows.tolist() == drawn.rows.tolist()
    for batch in (UNIFORM, RepeatsConfig(kind="poisson_lognormal", mean=6.0, longest=9)):
        config = TrainConfig(repeats=batch, static_depth=True)
        static = depth_of_step(config, seed=1, step=5, rows=3)
        assert static.rows is not None
        assert static.rows.tolist() == [draw_repeats(batch, seed=1, step=5)] * 3


def test_a_part_of_a_batch_gets_the_depths_of_its_rows():
    depth = StepDepth({"num_repeats": 7, "backprop_repeats": 3}, np.array([5, 1, 7, 3]))
    part = Batch({"tokens": torch.zeros(2, 4)}, np.array([0, 0]), 0, 0)
    found = depth.of_part(np.array([2, 1]), part, torch.device("cpu"))
    rows = found.pop("row_depth")
    assert (rows.first.tolist(), rows.last.tolist()) == ([4, 0], [3, 1])
    assert found == {"num_repeats": 7, "backprop_repeats": 3}


SEQUENCES = ["train.repeats={kind: poisson, mean: 3, per: sequence}"]
RECURRENT = ("model.depth.repeats=3", "model.depth.group=1", "model.state.injection=linear")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.repeats.kind=uniform"], "train.repeats.low=null: missing; kind uniform needs it"),
        (
            ["train.repeats={kind: fixed, mean: 3}"],
            "train.repeats.mean=3.0.*: kind fixed does not take it; it takes number",
        ),
        (
            ["train.repeats={kind: uniform, low: 4, high: 3}"],
            "train.repeats.high=3.*: must be at least low=4",
        ),
        (["train.repeats.kind=unifrom"], "did you mean 'uniform'"),
        (["train.backprop_repeats=0"], "train.backprop_repeats=0.*: must be at least 1"),
        (
            ["train.repeats={kind: poisson, mean: 3}", "train.static_depth=true"],
            "train.static_depth=true.*: needs repeats.longest, which bounds the depth",
        ),
        (["train.repeats.per=token"], "train.repeats.per='token'.*: has no effect with kind fixed"),
        (
            ["train.repeats={kind: poisson_lognormal, mean: 3, draws: published, per: sequence}"],
            "draws='published'.*: no published code draws kind poisson_lognormal for each sequence",
        ),
    ],
)
def test_options_are_checked(overrides, message, tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text())
    with pytest.raises(ConfigError, match=message):
        read_run(file, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.repeats={kind: uniform, low: 1, high: 3}"],
            "train.repeats.kind='uniform'.*: the encoder shares no layers",
        ),
        (
            ["train.backprop_repeats=1", "model.depth.repeats=2"],
            r"train.backprop_repeats=1.*: encoder: needs model.state.injection",
        ),
        (
            ["train.backprop_repeats=1", "model.state.injection=add"],
            r"=1: encoder: no layer is repeated \(model.depth.repeats=1\)$",
        ),
        (
            [*SEQUENCES, "model.depth.repeats=3", "model.halting=act"],
            "train.repeats.per='sequence'.*: encoder: model.halting.kind=act decides",
        ),
        (
            ["train.repeats={kind: poisson, mean: 3, per: token}", "model.depth.repeats=3"],
            "train.repeats.per='token'.*: an encoder_decoder reads two sequences",
        ),
    ],
)
def test_models_that_cannot_have_the_depth_are_refused(overrides, message, tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text())
    with pytest.raises(ConfigError, match=message):
        build(read_run(file, overrides))


def test_written_out_and_read_again(tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text())
    overrides = [*RECURRENT, "train.repeats={kind: poisson_lognormal, mean: 3}"]
    config = read_run(file, overrides)
    assert config.train.repeats.sigma == 0.5
    again = from_yaml(to_yaml(config))
    assert again == config
    assert again.hash("x") == config.hash("x") != read_run(file, RECURRENT).hash("x")
