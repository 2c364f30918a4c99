"""What TensorBoard shows is what metrics.jsonl holds."""

import json

import pytest

from runners import train
from runners.config.run_file import read_run
from runners.config.schema import ConfigError
from runners.process import environment
from runners.process.run_directory import RunDirectory
from runners.training.journal import _scalars

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    found = events.EventAccumulator(str(folder)).Reload()
    return {
        name: {event.step: event.value for event in found.Scalars(name)}
        for name in found.Tags()["scalars"]
    }


def test_rows_come_back_and_those_behind_a_resumed_step_are_hidden(make_run, train):
    directory = make_run("run", "train.tensorboard=true")
    assert train(directory, stop_at=7) == "stopped"
    assert train(directory) == "done"
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = scalars(directory / "tensorboard")
    losses = {row["step"]: pytest.approx(row["loss"]) for row in rows if "loss" in row}
    assert found["train/loss"] == losses
    matches = {row["step"]: row["metrics"]["exact_match"] for row in rows if "split" in row}
    assert found["dev/exact_match"] == pytest.approx(matches)


def test_nested_values_and_nothing():
    row = {"loss": 1, "speed": {"tokens_per_second": 2.0, "model_flops_utilization": None}}
    assert list(_scalars(row, "train")) == [
        ("train/loss", 1.0),
        ("train/speed/tokens_per_second", 2.0),
    ]


def test_not_asked_for_nothing_is_written(make_run, train):
    directory = make_run()
    assert train(directory) == "done"
    assert not (directory / "tensorboard").exists()


def test_missing_package_is_bad_input(tmp_path, run_text, monkeypatch, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(run_text().replace("train: {", "train: {tensorboard: true, "))
    monkeypatch.setattr(environment, "TENSORBOARD", "no_such_package")
    with pytest.raises(ConfigError, match=r"train\.tensorboard=true"):
        environment.check_packages(read_run(file))
    assert train.main([str(file), f"--run-directory={tmp_path / 'run'}"]) == 2
    assert "tiny.yaml:6: train.tensorboard=true: needs pip install" in capsys.readouterr().err
    assert not RunDirectory(tmp_path / "run").path.exists()
