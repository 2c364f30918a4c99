"""Trackers get what metrics.jsonl holds, go on after a resume, and never stop a run."""

import json
import sqlite3
import sys

import pytest

from runners.training import trackers


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


class Recorder:
    def __init__(self, fails_at=None):
        self.rows, self.is_closed, self.fails_at = [], False, fails_at

    def add(self, values, step):
        if step == self.fails_at:
            raise OSError("no network")
        self.rows.append((step, dict(values)))

    def close(self):
        self.is_closed = True


def test_rows_group_and_identity_reach_a_tracker_before_and_after_a_resume(
    make_run, train, monkeypatch
):
    opened = []

    def make(folder, config, record):
        opened.append((trackers.identity(folder), record.sweep, record.variant, Recorder()))
        return opened[-1][-1]

    monkeypatch.setitem(trackers.TRACKERS, "wandb", make)
    directory = make_run("run", "train.wandb=true")
    assert train(directory, stop_at=7) == "stopped"
    assert train(directory) == "done"
    (first, *place, before), (second, *_, after) = opened
    assert first == second
    assert place == ["s", "transformer"]
    losses = {step: v["train/loss"] for step, v in before.rows + after.rows if "train/loss" in v}
    assert losses == {row["step"]: row["loss"] for row in rows_of(directory) if "loss" in row}
    assert before.is_closed
    assert after.is_closed


def test_a_failure_is_said_once_and_changes_nothing(make_run, train, monkeypatch):
    plain = make_run("plain")
    assert train(plain) == "done"
    monkeypatch.setitem(trackers.TRACKERS, "trackio", lambda *_: Recorder(fails_at=4))
    said = []
    directory = make_run("run", "train.trackio=true")
    assert train(directory, on_progress=said.append) == "done"
    warnings = [message.text for message in said if "trackio" in getattr(message, "text", "")]
    assert warnings == [
        "train.trackio: trackio fails: OSError: no network; the run goes on without it"
    ]
    assert rows_of(directory) == rows_of(plain)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_stops_no_run(make_run, train, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    said = []
    assert train(make_run("run", f"train.{name}=true"), on_progress=said.append) == "done"
    assert any("is not installed" in getattr(message, "text", "") for message in said)


def test_wandb_offline(make_run, train, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra [wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    directory = make_run("run", "train.wandb=true")
    said = []
    assert train(directory, stop_at=7, on_progress=said.append) == "stopped"
    assert train(directory, on_progress=said.append) == "done"
    assert not [message for message in said if "wandb" in getattr(message, "text", "")]
    identity = json.loads((directory / "tracking.json").read_text())["id"]
    files = sorted((directory / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert files
    assert b"train/loss" in b"".join(path.read_bytes() for path in files)


def test_trackio_on_this_machine(make_run, train, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="needs the extra [trackio]")
    directory = make_run("run", "train.trackio=true")
    said = []
    assert train(directory, stop_at=7, on_progress=said.append) == "stopped"
    assert train(directory, on_progress=said.append) == "done"
    assert not [message for message in said if "trackio" in getattr(message, "text", "")]
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        found = {
            step: json.loads(values)["train/loss"]
            for step, values in database.execute("select step, metrics from metrics")
            if "train/loss" in json.loads(values)
        }
    assert found == {row["step"]: row["loss"] for row in rows_of(directory) if "loss" in row}
    assert trackio.__version__
