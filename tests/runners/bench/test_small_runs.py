"""What is measured of small runs."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from runners.bench import small_runs


def test_a_process_waits_for_the_others_and_says_how_fast_it_was(tmp_path, capsys):
    (tmp_path / "another").touch()  # is ready already
    small_runs.work([str(small_runs.SWEEP), "cpu", "plain", "1", "2", str(tmp_path), "2"])
    assert json.loads(capsys.readouterr().out) > 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def start(monkeypatch):
    """Return a function that lets processes run Python text, and the commands they stand for."""

    def replace_by(text):
        started = []

        def popen(command, **how):
            started.append([*command[-6:-2], command[-1]])
            return subprocess.Popen([sys.executable, "-c", text], **how)

        monkeypatch.setattr(small_runs, "subprocess", SimpleNamespace(Popen=popen, PIPE=-1))
        return started

    return replace_by


OPTIONS = SimpleNamespace(
    sweep=small_runs.SWEEP, device="cpu", steps=3, repeats=2, warm_up=4, workers=(1, 3)
)


def test_processes_that_train_at_once_are_added_up(start):
    started = start("print(2.5)")
    rows = small_runs.measure_together({"transformer": None}, OPTIONS)
    assert [(row["workers"], row["steps_per_second"]) for row in rows] == [(1, 2.5), (3, 7.5)]
    assert started == [["cpu", "plain", "4", "6", "1"], *[["cpu", "plain", "4", "6", "3"]] * 3]


def test_a_process_that_fails_is_said(start):
    start("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="one of 2 processes has failed"):
        small_runs._trained_at_once(OPTIONS, "plain", 2)
