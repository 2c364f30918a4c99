"""Every second of a run is counted once, and a journal that does not write leaves no file."""

import contextlib
import errno
import json
import time

import pytest

from runners.process.messages import Notice, TrainingProgress
from runners.process.run_directory import RunDirectory
from runners.training import journal as module
from runners.training.journal import Clock, Journal, Lap


@pytest.fixture
def now(monkeypatch):
    """The time of day in one mutable element; starts at 100 s."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def open_journal(path, *, writes=True, messages=None):
    on_progress = (lambda message: None) if messages is None else messages.append
    return Journal(RunDirectory(path), Clock(), writes=writes, on_progress=on_progress)


def test_lap_leaves_scoring_out(now):
    clock = Clock()
    lap = Lap(clock, 500)
    now[0] += 8.0
    with clock.scoring():
        now[0] += 2.0
    assert lap.read(4500) == (8.0, 4000)
    assert lap.restart(4500) == (8.0, 4000)
    now[0] += 1.0
    assert lap.read(4600) == (1.0, 100)
    assert (clock.seconds, clock.scoring_seconds, clock.training_seconds) == (11.0, 2.0, 9.0)


def test_scoring_that_is_stopped_is_counted(now):
    clock = Clock()
    with contextlib.suppress(KeyError), clock.scoring():
        now[0] += 3.0
        raise KeyError
    assert clock.scoring_seconds == 3.0


def test_times_add_up_over_starts(tmp_path, now):
    for start in range(2):
        with open_journal(tmp_path) as journal:
            now[0] += 1.0  # reading data
            journal.start_training(40 * start)
            now[0] += 4.0
            journal.count_training(40 * start + 25)
            with journal.clock.scoring():
                now[0] += 2.0
            now[0] += 1.0
            journal.count_training(40 * start + 40)
            now[0] += 0.5
    assert json.loads((tmp_path / "timings.json").read_text()) == {
        "wall_seconds": 17.0,
        "train_seconds": 10.0,
        "evaluate_seconds": 4.0,
        "tokens_trained": 80,
        "starts": 2,
        "tokens_per_second": 8.0,
    }


def progress_at(step):
    return TrainingProgress(step=step, steps=9, loss=0.5, tokens_per_second=1.0)


def test_progress_is_passed_on_now_and_then_and_notices_always(tmp_path, now):
    messages = []
    with open_journal(tmp_path, messages=messages) as journal:
        for step in range(4):
            journal.progress(progress_at(step))
            journal.notice(f"notice {step}")
            now[0] += 0.3
    assert [message.step for message in messages if isinstance(message, TrainingProgress)] == [0, 2]
    assert len([message for message in messages if isinstance(message, Notice)]) == 4


def test_a_rank_that_does_not_write_is_silent(tmp_path):
    messages = []
    with open_journal(tmp_path, writes=False, messages=messages) as journal:
        journal.open(size=0, step=0, tensorboard=False)
        journal.append({"step": 1})
        journal.progress(progress_at(1))
        journal.notice("damaged")
        assert journal.flush() is None
    assert messages == []
    assert list(tmp_path.iterdir()) == []


def test_full_disk_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail():
        with open_journal(tmp_path):
            monkeypatch.setattr(module, "write_json", full)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()


def test_runs_of_one_step_cost_little_beside_it(make_run, train):
    beside = []
    for number in range(4):
        directory = make_run(f"run{number}", "train.steps=1", "train.warmup_steps=0")
        began = time.process_time()
        assert train(directory) == "done"
        spent = time.process_time() - began
        times = json.loads((directory / "timings.json").read_text())
        beside.append(spent - times["train_seconds"] - times["evaluate_seconds"])
    # Building, a checkpoint, scoring and the result: CPU time, since tests share the machine.
    assert min(beside[1:]) < 0.3
