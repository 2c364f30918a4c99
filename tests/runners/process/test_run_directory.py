"""What the files of a run say, and the log that is cut where a run resumes."""

import errno

import pytest

from runners.process.run_directory import MetricsLog, RunDirectory, RunRecord
from tasks.base.storage import write_json


def test_status(make_run):
    files = RunDirectory(make_run())
    assert files.status() == "new"
    files.checkpoints.mkdir()
    assert files.status() == "resumable"
    files.fail("no", step=3)
    assert files.status() == "failed"
    write_json(files.result, {})
    assert files.status() == "done"


def test_config_and_record_come_back(make_run):
    directory = make_run("run", "train.learning_rate=3e-4", "seed=5", architecture="moeut")
    files = RunDirectory(directory)
    config, record = files.read_config(), files.read_record()
    assert (config.train.learning_rate, config.seed) == (3e-4, 5)
    assert config.train.betas == (0.9, 0.999)
    assert (record.variant, record.seed, len(record.hash)) == ("moeut", 5, 8)
    other = RunDirectory(directory.parent / "other")
    other.prepare(config, record)
    assert other.read_config() == config
    assert other.read_record() == record
    assert isinstance(record, RunRecord)


def test_what_a_directory_says_already_is_not_written_again(make_run):
    files = RunDirectory(make_run())
    config, record = files.read_config(), files.read_record()
    whole = files.config.read_bytes()
    before = [path.stat().st_ino for path in (files.config, files.record)]
    files.prepare(config, record)
    assert [path.stat().st_ino for path in (files.config, files.record)] == before
    files.config.write_bytes(b"")  # as a loss of power may leave it
    files.prepare(config, record)
    assert files.config.read_bytes() == whole
    assert files.record.stat().st_ino == before[1]


def test_log_is_cut_where_the_run_resumes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"step": 1})
    size = log.flush()
    log.append({"step": 2, "text": "é"})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2, "text": "é"}\n'
    log = MetricsLog(path, size=size)
    log.append({"step": 3})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize(("left", "kept"), [(None, ""), ('{"a": 1}\n{"b', '{"a": 1}\n')])
def test_what_a_shortened_log_has_lost_is_said_and_whole_rows_stay(tmp_path, left, kept):
    path = tmp_path / "metrics.jsonl"
    if left is not None:
        path.write_text(left)
    said = []
    log = MetricsLog(path, size=1234, warn=said.append)
    log.append({"step": 3})
    log.close()
    assert path.read_text() == kept + '{"step": 3}\n'
    (line,) = said
    assert f"{1234 - len(left or ''):,} of 1,234 bytes are lost" in line


def test_failure_on_a_full_disk_is_in_the_log_alone(make_run, monkeypatch, caplog):
    files = RunDirectory(make_run())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    files.fail("no room for a checkpoint", step=3)
    assert "No space left on device; no room for a checkpoint" in caplog.text
    assert files.status() == "new"
    assert "could not be written" in files.failure()
    monkeypatch.undo()
    files.fail("no room for a checkpoint", step=3)
    assert files.failure() == "no room for a checkpoint"
