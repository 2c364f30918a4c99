"""A finished run scored again: the same scores, or a reason why not."""

import json

import pytest

from runners.config.schema import ConfigError, EvaluateConfig
from runners.reporting.run_result import RunResult
from runners.scoring.finished_run import choose_rows, load_finished_run, score_finished_run
from runners.training import experiment


@pytest.fixture
def directory(make_run, train):
    directory = make_run(
        "run", "train.steps=6", "evaluate.repeats=[4]", "select=best:dev", architecture="universal"
    )
    assert train(directory) == "done"
    return directory


def test_scores_are_those_of_the_result(directory):
    run = load_finished_run(directory)
    result = RunResult.from_json(json.loads((directory / "result.json").read_text()))
    assert score_finished_run(run, repeats=[2, 4]) == result.scores
    (one,) = score_finished_run(run, splits=["train"], repeats=[3])
    assert (one.split, one.repeats, one.is_default_depth) == ("train", [3, 3], False)


def test_data_that_was_changed_is_refused(directory):
    file = directory.parent / "test.tsv"
    file.write_text(file.read_text().replace("a", "b"))
    experiment._task.cache_clear()  # as in another process
    experiment._objective.cache_clear()
    with pytest.raises(ConfigError, match=r"was trained on data that is no longer what the run"):
        load_finished_run(directory)


def test_check_is_asked_before_every_batch(directory):
    calls = []
    settings = EvaluateConfig(batch_size=3)
    run = load_finished_run(directory)
    score_finished_run(run, splits=["dev"], settings=settings, check=lambda: calls.append(1))
    assert len(calls) >= 3  # 8 rows, and some of them again without an end token


def test_choice_of_rows():
    config = EvaluateConfig(rows_per_category=5, batch_size=7)
    assert choose_rows(config, rows_per_category=None, all_rows=False) is config
    assert choose_rows(config, rows_per_category=2, all_rows=False).rows_per_category == 2
    everything = choose_rows(config, rows_per_category=None, all_rows=True)
    assert (everything.rows_per_category, everything.batch_size) == (None, 7)
    with pytest.raises(ConfigError, match="--rows-per-category 0: must be at least 1"):
        choose_rows(config, rows_per_category=0, all_rows=False)
