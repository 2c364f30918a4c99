"""A directory is what its record says, or it is refused."""

import json

import pytest

from runners.config.schema import ConfigError
from runners.process import environment
from runners.process.ranks import Agreement, World
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stop
from runners.run import prepare


def test_edited_config_is_refused(make_run, train):
    directory = make_run()
    text = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(text.replace("steps: 12", "steps: 13"))
    with pytest.raises(ConfigError, match="the file or the data was changed"):
        train(directory)


def test_what_is_prepared_is_what_the_directory_says(make_run):
    files = RunDirectory(make_run("run", "seed=3"))
    prepared = prepare(files, Agreement(World(), Stop()))
    assert prepared.config == files.read_config()
    assert prepared.config.seed == 3
    assert prepared.record.hash == files.read_record().hash
    assert prepared.data_hash == prepared.built.task.data_hash()
    assert json.loads((files.path / "env.json").read_text())["num_threads"] == 1


def test_every_start_stands_in_the_record_and_changed_code_is_said(make_run, train, monkeypatch):
    directory = make_run("run", "train.steps=4", "evaluate.interval=null")
    git = {"commit": "a" * 40, "dirty": False, "changes": None}
    code = [{"version": "1", "git": git}]
    monkeypatch.setattr(environment, "describe_code", lambda: code[-1])
    said = []
    listen = lambda message: said.append(getattr(message, "text", ""))  # noqa: E731
    for step in (1, 2):
        assert train(directory, stop_at=step, on_progress=listen) == "stopped"
    assert not any("code" in text for text in said)
    code.append({"version": "1", "git": git | {"dirty": True, "changes": "0123456789ab"}})
    assert train(directory, on_progress=listen) == "done"
    (text,) = [text for text in said if "code" in text]
    assert "the code was changed since the run was last started" in text
    assert "commit aaaaaaaaaaaa before, commit aaaaaaaaaaaa with the changes 0123456789ab" in text
    starts = json.loads((directory / "env.json").read_text())["starts"]
    assert [start["git"]["dirty"] for start in starts] == [False, False, True]
    assert all(start["host"] and start["time"] for start in starts)
