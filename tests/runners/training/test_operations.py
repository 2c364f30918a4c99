"""The mean depth of a training, which its operations are counted at."""

import pytest

from runners.config.run_file import read_run
from runners.training.experiment import build
from runners.training.operations import mean_depth, rough_work

TEXT = """
task: {name: looped, problem: parity, train_lengths: [1, 4], curriculum_start: 1,
       curriculum_rows: 40, rows_per_length: 1, test_lengths: [6], iid_rows: 4}
model:
  architecture: universal
  d_model: 8
  depth: {repeats: 3}
  attention: {num_heads: 2}
  position: none
train: {steps: 40, batch_size: 8, repeats: {kind: length, per: sequence}}
"""


@pytest.fixture
def depth_of(tmp_path):
    def read(*overrides):
        file = tmp_path / "run.yaml"
        file.write_text(TEXT)
        config = read_run(file, overrides)
        return mean_depth(config.train, build(config).objective)[0]

    return read


def test_the_depth_of_a_curriculum_is_that_of_the_whole_training(depth_of):
    """Five steps each of 1, of 1–2 and of 1–3 bits, then 25 of 1–4: (5 + 7.5 + 10 + 62.5) / 40."""
    assert depth_of() == pytest.approx(2.125, abs=0.15)
    assert depth_of("train.steps=5") == 1


def test_a_batch_that_shares_its_depth_takes_the_longest(depth_of):
    """(5 · 1 + 5 · 2 + 5 · 3 + 25 · 4) / 40, were the longest in every batch."""
    assert 2.9 < depth_of("train.repeats.per=batch") <= 3.25


def test_rough_work_tells_long_runs_from_short_ones(tmp_path):
    def work(*overrides):
        file = tmp_path / "run.yaml"
        file.write_text(TEXT)
        built = build(read_run(file, overrides))
        return rough_work(built.config.train, built.model_config)

    assert work("train.steps=80") == 2 * work()
    assert work("train.batch_size=16") == 2 * work()
    assert work("model.depth.repeats=6") > 1.5 * work()
