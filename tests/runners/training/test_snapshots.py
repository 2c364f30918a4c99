"""A run goes on from its own checkpoints alone, and from whole ones."""

import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch

from runners.config.schema import ConfigError
from runners.process.ranks import World
from runners.process.signals import Stopped
from runners.training import snapshots
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


@pytest.fixture
def saving(monkeypatch, tmp_path):
    """Return snapshots, a loop that can be changed, and what was written once ``go`` is set."""
    go, written = threading.Event(), []

    def write(folder, *, state, weights, **_rest):
        assert go.wait(10)
        if state["metrics_bytes"] is None:
            raise OSError("no room")
        written.append((state["loop"]["moment"].clone(), weights["model"]["weight"].clone()))

    monkeypatch.setattr(snapshots, "save_checkpoint", write)
    agreement = SimpleNamespace(world=World(), confirm_lease=lambda: None, lease=None)
    config = SimpleNamespace(to_dict=dict)
    own = Snapshots(
        folder=tmp_path, run_hash="", identity={}, model_config=config, agreement=agreement
    )
    model = torch.nn.Linear(1, 1)
    moment = torch.zeros(1)
    loop = SimpleNamespace(
        model=model,
        average=None,
        state_dict=lambda: {"moment": moment, "places": [1, (2,)]},
        position=SimpleNamespace(step=1),
    )
    yield own, loop, moment, go, written
    go.set()


def test_checkpoint_holds_the_step_it_was_asked_at_though_training_goes_on(saving):
    own, loop, moment, go, written = saving
    before = loop.model.weight.detach().clone()
    own.save(loop, best=None, metrics_bytes=0)  # returns while nothing is written yet
    with torch.no_grad():
        loop.model.weight += 1
        moment += 1
    assert not written
    go.set()
    own.wait()
    assert [[float(one) for one in pair] for pair in written] == [[0.0, float(before)]]


def test_what_fails_beside_the_training_is_raised_by_the_next_call(saving):
    own, loop, _moment, go, _written = saving
    go.set()
    own.save(loop, best=None, metrics_bytes=None)
    with pytest.raises(OSError, match="no room"):
        own.save(loop, best=None, metrics_bytes=0)


@pytest.mark.parametrize(
    ("of_context", "raised"), [(KeyError("wrong"), KeyError), (Stopped("saved"), OSError)]
)
def test_a_stop_says_that_the_state_is_saved_and_other_errors_come_first(
    saving, of_context, raised
):
    own, loop, _moment, go, written = saving
    go.set()

    def run():
        with own.written():
            own.save(loop, best=None, metrics_bytes=None)
            raise of_context

    with pytest.raises(raised):
        run()
    assert not written
