"""Every task that needs no files trains ten steps, in every form it has, and is scored.

Every other one says which command brings its files, and that command knows them.
"""

import dataclasses
import functools
import math
import re

import pytest
import torch
import yaml

import tasks
from runners.config.run_file import FORMS, read_run
from runners.scoring.splits import split_scorer
from runners.training.experiment import build, build_model
from runners.training.lengths import train_columns
from runners.training.loop import Loop
from tasks.base.lengths import LengthTask
from tasks.base.positions import PositionTask
from tasks.fetch import choose

SMALL = {
    "chomsky": {"language": "stack_manipulation", "train_lengths": [1, 8], "test_lengths": [12]},
    "dyck": {"train_lengths": [4, 12], "test_lengths": [16]},
    "flip_flop": {"train_lengths": [8, 12], "test_lengths": [16]},
    "word_problem": {"train_lengths": [1, 6], "test_lengths": [9]},
    "mqar": {"vocabulary": 32, "train_lengths": [16, 16], "test_lengths": [16, 24]},
    "p_hop": {"tokens": 12, "train_lengths": [0, 2], "test_lengths": [3]},
    "multi_hop": {"entities": 6, "train_lengths": [1, 3], "test_lengths": [4]},
    "reachability": {"train_lengths": [3, 5], "test_lengths": [6]},
    "path_star": {"nodes": 12, "train_lengths": [1, 3], "test_lengths": [4]},
    "edit_distance": {"train_lengths": [4, 5], "test_lengths": [6]},
    "cellular": {"cells": 5, "train_lengths": [0, 2], "test_lengths": [3]},
    "operand_addition": {"digits": 1, "train_lengths": [2, 3], "test_lengths": [4]},
    "dag_arithmetic": {"names": 6, "train_lengths": [2, 4], "test_lengths": [5]},
    "modular_expression": {"modulus": 3, "train_lengths": [1, 3], "test_lengths": [4]},
    "looped": {"problem": "multi", "train_lengths": [1, 4], "test_lengths": [5]},
    "sudoku": {"size": 4, "puzzles": 5, "valid_puzzles": 5, "test_puzzles": 5},
    "maze": {"side": 5, "puzzles": 5, "valid_puzzles": 5, "test_puzzles": 5, "least_path": 2},
    "prefix_sums": {"train_lengths": [1, 8], "test_lengths": [12]},
}
"""Options that make a task small."""

DRAWN = {
    "scan": {"cutoff": 26, "held_out": 100},
    "cogs_like": {"train_rows": 600, "dev_rows": 20, "test_rows": 20, "gen_rows": 2},
    "arithmetic": {"train_rows": 200, "iid_rows": 8, "valid_rows": 8, "test_rows": 8},
    "addition": {"train_rows": 200, "iid_rows": 8, "valid_rows": 8, "test_rows": 8},
    "multiplication": {"train_rows": 200, "iid_rows": 8, "valid_rows": 8, "test_rows": 8},
    "table_lookup": {"train_rows": 200, "iid_rows": 8, "valid_rows": 8, "test_rows": 8},
    "ctl": {},
    "ctl_plus": {"functions": 12, "overlap": 2, "train_rows": 400, "iid_rows": 8, "test_rows": 8},
    "listops": {"train_rows": 200, "iid_rows": 8, "valid_rows": 8, "test_rows": 8},
    "logical_inference_like": {"train_rows": 200, "other_rows": 12},
    "string_functions": {"train_rows": 200, "other_rows": 8},
    "gym": {"train_rows": 200, "valid_rows": 8, "test_rows": 8},
}
"""The same of tasks whose rows are drawn before the first step."""
ELSEWHERE = {
    "file": "what a user brings: tests/tasks/test_file.py, and the runs of tests/runners",
    "language": "text, packed first: tests/runners/test_language.py",
}

LABELLED = [name for name in tasks.TASKS if issubclass(tasks.task_class(name), PositionTask)]
GENERATED = [name for name in LABELLED if name in SMALL]
WITH_FILES = [name for name in tasks.TASKS if name not in {*SMALL, *DRAWN, *ELSEWHERE}]
CPU = torch.device("cpu")


def config_of(directory, task, form):
    path = directory / "run.yaml"
    model = {"architecture": "universal", "d_model": 8, "depth": {"repeats": 2}, "form": form}
    model |= {"attention": {"num_heads": 1}, "feed_forward": {"hidden_size": 8}}
    train = {"steps": 10, "batch_size": 4, "learning_rate": 1e-3}
    path.write_text(yaml.safe_dump({"task": task, "model": model, "train": train}))
    return read_run(path)


def trained_and_scored(directory, section, form):
    """Train ten steps and return what was built, the losses, and the score of each split."""
    config = config_of(directory, section, form)
    built = build(config)
    torch.manual_seed(0)
    model = build_model(built.model_config, CPU)
    loop = Loop(
        config.train,
        objective=built.objective,
        model=model,
        columns=train_columns(built.objective),
        seed=3,  # far from the first rows of an endless split
        d_model=8,
        device=CPU,
    )
    losses = [loop.advance()["loss"] for _ in range(10)]
    assert all(map(math.isfinite, losses))
    few = dataclasses.replace(config.evaluate, rows_per_category=4)
    scorer = split_scorer(built.objective)(model=model, built=built, config=few, device=CPU)
    scores = [scorer.score(split, oracle=False).score for split in built.final_splits(config)]
    assert all(0 <= value <= 1 for score in scores for value in score.metrics.values())
    return built, losses, scores


@pytest.mark.parametrize("name", GENERATED)
def test_it_trains_and_is_scored(name, tmp_path):
    options = SMALL[name]
    if issubclass(tasks.task_class(name), LengthTask):
        options = {"rows_per_test_length": 4, "iid_rows": 8} | options
    for form in FORMS[tasks.create(name, **options).kind]:
        built, losses, scores = trained_and_scored(tmp_path, {"name": name} | options, form)
        words = len(built.task.labels()) + len(built.task.symbols())
        assert max(losses) < 3 * math.log(words + 4) + 1
        for score in scores:
            assert score.ceiling == 1.0
            assert score.chance > 0
            assert {"length, label by label", "place, label by label"} <= set(score.tables)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.extras if name == "gym" else ()) for name in DRAWN],
)
def test_drawn_rows_train_and_are_scored_in_a_fresh_clone(name, no_data, tmp_path):
    if name == "gym":
        pytest.importorskip("reasoning_gym")
    forms = FORMS[tasks.create(name, **DRAWN[name]).kind]
    for form in forms[:1] if name in ("ctl", "scan") else forms:  # they have one size, a large one
        built, losses, scores = trained_and_scored(tmp_path, {"name": name} | DRAWN[name], form)
        source, target = built.task.vocabularies()
        assert max(losses) < 3 * math.log(len(source) + len(target)) + 1
        assert {score.split for score in scores} <= set(built.task.splits())


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """Take every file away, as in a fresh clone on a fresh machine."""
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "none either"))


@pytest.mark.parametrize("name", WITH_FILES)
def test_a_task_with_files_says_which_command_fetches_them(name, no_data):
    with pytest.raises(tasks.DataMissing) as error:
        tasks.create(name).splits()
    file, command = re.fullmatch(
        r"(\S+): not found in .*; fetch it with: python -m tasks\.fetch (\S+)", str(error.value)
    ).groups()
    assert file in {entry.path for entry in choose([command])}
    about = tasks.task_class(name).about.fetch
    assert about.startswith("python -m tasks.fetch ")
    words = about.removeprefix("python -m tasks.fetch ").partition(" (")[0].split()
    assert file in {entry.path for entry in choose(words)}


def test_every_task_is_in_one_of_these_tests():
    assert set(tasks.TASKS) == {*SMALL, *DRAWN, *WITH_FILES, *ELSEWHERE}
    assert set(WITH_FILES) == {
        *("cogs", "recogs", "cogs_variant", "slog", "pcfg_set", "cfq", "mcwq"),
        *("logical_inference", "sudoku_extreme", "maze_hard"),
    }


@functools.cache
def rows(name):
    task = tasks.create(name, **SMALL[name])
    return task.split(task.split_names()[-1])


@pytest.mark.parametrize("name", GENERATED)
def test_rows_as_tokens_are_those_as_numbers(name):
    task = tasks.create(name, **SMALL[name])
    examples = task.split(task.split_names()[-1])[:5]
    made, again = rows(name).arrays(torch.arange(5).numpy()), task.numbers(examples)
    assert (again.source == made.source[:, : again.source.shape[1]]).all()
    assert (again.target == made.target[:, : again.target.shape[1]]).all()
    assert all(len(row.source) == len(row.target) for row in examples)
    assert task.about is not None
