"""A run goes on from its own checkpoints alone, and from whole ones."""

import json
import shutil
from types import SimpleNamespace

import pytest

from runners.config.schema import ConfigError
from runners.training.snapshots import Snapshots


def test_run_whose_checkpoints_are_all_damaged_fails_and_does_not_begin_again(make_run, train):
    directory = make_run()
    train(directory, stop_at=3)
    (directory / "checkpoints" / "step_000003" / "state.pt").unlink()
    assert train(directory) == "failed"
    error = json.loads((directory / "error.json").read_text())
    assert "state.pt: missing" in error["message"]
    assert "every checkpoint is damaged" in error["message"]


def test_resume_under_another_config_is_refused_with_the_difference(make_run, train):
    directory = make_run()
    train(directory, stop_at=3)
    checkpoints = directory / "checkpoints"
    kept = checkpoints.rename(directory.parent / "kept")
    shutil.rmtree(directory)
    make_run("run", "train.learning_rate=0.02")
    kept.rename(checkpoints)
    with pytest.raises(ConfigError, match=r"-learning_rate: 0\.01; \+learning_rate: 0\.02"):
        train(directory)


def test_ranks_that_see_different_checkpoints_are_told(make_run, train):
    directory = make_run()
    train(directory, stop_at=3)
    folder = directory / "checkpoints"
    agreement = SimpleNamespace(world=SimpleNamespace(gather=lambda step: [step, None]))
    own = Snapshots(folder=folder, run_hash="", identity={}, model_config=None, agreement=agreement)
    with pytest.raises(ValueError, match=r"checkpoints: the ranks find different checkpoints"):
        own.find(warn=pytest.fail)
