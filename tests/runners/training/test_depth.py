"""The depth of a step: drawn alike by all, and what follows from it in training."""

import math

import numpy as np
import pytest

from runners.config.run_file import from_yaml, read_run, to_yaml
from runners.config.schema import ConfigError, RepeatsConfig, TrainConfig
from runners.training.depth import depth_of_step, draw_repeats
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
    assert depth_of_step(TrainConfig(), seed=0, step=3) == {}
    config = TrainConfig(repeats=RepeatsConfig(kind="uniform", low=3, high=3), backprop_repeats=2)
    assert depth_of_step(config, seed=0, step=3) == {"num_repeats": 3, "backprop_repeats": 2}


RECURRENT = ("model.depth.repeats=3", "model.depth.group=1", "model.state.injection=linear")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.repeats.kind=uniform"], "train.repeats.low=null: missing; kind uniform needs it"),
        (
            ["train.repeats={kind: fixed, mean: 3}"],
            "train.repeats.mean=3.0.*: kind fixed does not take it; it takes no options",
        ),
        (
            ["train.repeats={kind: uniform, low: 4, high: 3}"],
            "train.repeats.high=3.*: must be at least low=4",
        ),
        (["train.repeats.kind=unifrom"], "did you mean 'uniform'"),
        (["train.backprop_repeats=0"], "train.backprop_repeats=0.*: must be at least 1"),
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
