"""What a driver says of distant runs: steps and speed, from nothing but their files."""

from runners.process.messages import Ended, Started, TrainingProgress
from runners.process.run_directory import json_line
from runners.sweeping import watching
from runners.sweeping.executor import Job


def follow(tmp_path, monkeypatch, rows):
    """Return what is said of a run whose log gets one of these rows every 2 s."""
    now = [100.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    said = []
    watch = watching.Watch(
        [Job(tmp_path, 1, steps=50)], on_message=lambda path, message: said.append(message)
    )
    for row in rows:
        tmp_path.joinpath("metrics.jsonl").write_bytes(json_line(row))
        watch.is_running(tmp_path)
        watch.is_running(tmp_path)
        now[0] += 2.0
    watch.has_ended(tmp_path, reason="gone")
    return said


def test_speed_is_of_the_tokens_between_the_rows_that_were_seen(tmp_path, monkeypatch):
    rows = [{"step": 10 * i, "loss": 1.0, "tokens_seen": 1000 * i} for i in (1, 2, 4)]
    first, *progress, last = follow(tmp_path, monkeypatch, rows)
    assert isinstance(first, Started)
    assert [(each.step, each.steps) for each in progress] == [(10, 50), (20, 50), (40, 50)]
    assert [each.tokens_per_second for each in progress] == [0.0, 500.0, 750.0]
    assert isinstance(last, Ended)
    assert (last.status, last.reason) == ("stopped", "gone")


def test_a_row_that_knows_its_speed_is_believed(tmp_path, monkeypatch):
    rows = [{"step": 1, "loss": 1.0, "tokens_seen": 9, "speed": {"tokens_per_second": 77.0}}]
    _, progress, _ = follow(tmp_path, monkeypatch, rows)
    assert isinstance(progress, TrainingProgress)
    assert progress.tokens_per_second == 77.0


def test_a_second_start_has_a_speed_of_its_own(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    speeds = []
    watch = watching.Watch(
        [Job(tmp_path, 1, steps=9)],
        on_message=lambda path, message: speeds.append(getattr(message, "tokens_per_second", None)),
    )
    for seconds, step in ((0.0, 1), (1.0, 2), (1000.0, 3), (1002.0, 4)):
        now[0] = seconds
        if step == 3:
            watch.is_back(tmp_path)
        row = {"step": step, "loss": 1.0, "tokens_seen": 100 * step}
        tmp_path.joinpath("metrics.jsonl").write_bytes(json_line(row))
        watch.is_running(tmp_path)
    assert [speed for speed in speeds if speed is not None] == [0.0, 100.0, 0.0, 50.0]
