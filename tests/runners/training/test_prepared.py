"""A directory is what its record says, or it is refused."""

import json

import pytest

from runners.config.schema import ConfigError
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stop
from runners.training.agreement import Agreement
from runners.training.prepared import prepare


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
