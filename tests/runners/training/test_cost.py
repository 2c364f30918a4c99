"""What a model costs is counted on the model that is built."""

import pytest
import torch

from runners.config.run_file import read_run
from runners.training.cost import describe_model, mean_lengths, seconds_per_step
from runners.training.experiment import build, build_model, train_columns


@pytest.fixture
def config(tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text(architecture="universal"))
    return read_run(file, [])


def test_size_is_that_of_the_model(config):
    built = build(config)
    model = build_model(built.model_config, torch.device("cpu"))
    described = describe_model(built)
    assert described.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (described.num_layers, described.group_size, described.d_model) == (2, 1, 16)


def test_lengths_are_means_over_train(config):
    built = build(config)
    source, target = train_columns(built.objective).shape.mean(axis=0)
    assert mean_lengths(built.objective) == (round(source), round(target))


def test_an_update_is_timed(config):
    assert 0 < seconds_per_step(config, build(config), seconds=0.05) < 30
