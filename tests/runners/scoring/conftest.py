"""Runs of a small task, built."""

import pytest

from runners.config.run_file import read_run
from runners.training.experiment import build


@pytest.fixture
def built(tmp_path, run_text):
    """Return a function that builds what a small run describes."""

    def make(*overrides, **options):
        file = tmp_path / "run.yaml"
        file.write_text(run_text(**options))
        return build(read_run(file, overrides))

    return make
