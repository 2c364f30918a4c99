"""Every task that needs no files trains ten steps, in every form it has, and is scored."""

import functools
import math

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

GENERATED = [name for name in tasks.TASKS if issubclass(tasks.task_class(name), PositionTask)]
CPU = torch.device("cpu")


def config_of(directory, task, form):
    path = directory / "run.yaml"
    model = {"architecture": "universal", "d_model": 8, "depth": {"repeats": 2}, "form": form}
    model |= {"attention": {"num_heads": 1}, "feed_forward": {"hidden_size": 8}}
    train = {"steps": 10, "batch_size": 4, "learning_rate": 1e-3}
    path.write_text(yaml.safe_dump({"task": task, "model": model, "train": train}))
    return read_run(path)


@pytest.mark.parametrize("name", GENERATED)
def test_it_trains_and_is_scored(name, tmp_path):
    options = SMALL[name]
    if issubclass(tasks.task_class(name), LengthTask):
        options = {"rows_per_test_length": 4, "iid_rows": 8} | options
    section = {"name": name} | options
    for form in FORMS[tasks.create(name, **options).kind]:
        config = config_of(tmp_path, section, form)
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
        words = len(built.task.labels()) + len(built.task.symbols())
        assert max(losses) < 3 * math.log(words + 4) + 1
        scorer = split_scorer(built.objective)(
            model=model, built=built, config=config.evaluate, device=CPU
        )
        for split in built.final_splits(config):
            score = scorer.score(split).score
            assert all(0 <= value <= 1 for value in score.metrics.values())
            assert score.ceiling == 1.0
            assert score.chance > 0
            assert {"length, label by label", "place, label by label"} <= set(score.tables)


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
