"""The recipe of docs/extending.md for a task, run to a scored result."""

from __future__ import annotations

import doctest
import json
import random
import statistics
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

import tasks
from runners import train
from tasks import menu
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask

CONFIG = """
task: {name: reverse, rows: 50, train_length: 4}
model: {architecture: transformer, d_model: 16}
train: {steps: 10, batch_size: 8, warmup_steps: 0}
"""


# --- tasks/reverse.py, as the recipe has it -------------------------------------------------


LETTERS = "abcdefgh"


@dataclass(frozen=True, kw_only=True)
class Reverse(ExampleTask):
    """Write a word backwards, where the words of the test are longer than any of train.

    >>> task = Reverse(rows=20)
    >>> [(name, len(rows)) for name, rows in task.splits().items()]
    [('train', 20), ('valid', 2), ('test', 2)]
    >>> row = task.split("train")[0]
    >>> row.target == row.source[::-1]
    True
    """

    name: ClassVar[str] = "reverse"
    difficulty_name: ClassVar[str] = "length of the word, letters"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid",)
    in_distribution_split: ClassVar[str | None] = "valid"  # type: ignore[assignment]

    rows: int = 1000
    """Rows of train; the other splits have a tenth as many."""
    train_length: int = 6
    """Letters of the longest word of train; words of the test have up to twice as many."""
    seed: int = 0
    """Seed of the words, the same for every model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "rows", self.rows >= 10, "at least 10")
        enough = len(LETTERS) ** self.train_length >= 2 * self.rows
        require(self, "train_length", enough, "longer: there are too few words for task.rows")

    def build_splits(self) -> dict[str, list[Example]]:
        few, longest = self.rows // 10, self.train_length
        known = self._draw("known", self.rows + few, range(1, longest + 1))
        return {
            "train": known[few:],
            "valid": known[:few],
            "test": self._draw("test", few, range(longest + 1, 2 * longest + 1)),
        }

    def _draw(self, what: str, count: int, lengths: range) -> list[Example]:
        """Draw distinct words, each length as often as any other while words of it are left."""
        generator = random.Random(f"reverse {self.seed} {what}")  # a text: the same everywhere
        words: dict[str, None] = {}  # keeps the order, which a set does not
        while len(words) < count:
            words["".join(generator.choices(LETTERS, k=generator.choice(lengths)))] = None
        drawn = list(words)
        generator.shuffle(drawn)  # short words run out first: valid would have too many of them
        return [Example(tuple(word), tuple(word[::-1]), difficulty=len(word)) for word in drawn]


# --- what it gets for that --------------------------------------------------------------


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "reverse", Reverse)


def test_the_worked_example_is_true():
    runner = doctest.DocTestRunner()
    (example,) = doctest.DocTestFinder().find(Reverse, "Reverse", sys.modules[__name__])[:1]
    result = runner.run(example)
    assert (result.attempted, result.failed) == (4, 0)


def test_options_are_checked_and_explained():
    with pytest.raises(tasks.OptionError, match=r"^task\.rows=5: must be at least 10$"):
        tasks.create("reverse", rows=5)
    with pytest.raises(tasks.OptionError, match="did you mean 'rows'"):
        tasks.create("reverse", row=5)
    assert "rows: a whole number; default 1000\n" in menu.describe_tasks()


def test_data_is_that_of_its_seed_and_no_word_is_in_two_splits():
    task = tasks.create("reverse")
    assert task.data_hash() == tasks.create("reverse").data_hash()
    assert task.data_hash() != tasks.create("reverse", seed=1).data_hash()
    words = [row.source for rows in task.splits().values() for row in rows]
    assert len(words) == len(set(words)) == 1200
    lengths = [statistics.mean(len(row.source) for row in rows) for rows in task.splits().values()]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.4)
    assert lengths[2] > 7


def test_a_run_trains_and_scores_it(tmp_path):
    config = tmp_path / "reverse.yaml"
    config.write_text(CONFIG)
    assert train.main([str(config), f"--run-directory={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["task"]["name"], result["task"]["headline_split"]) == ("reverse", "test")
    scores = {score["split"]: score for score in result["scores"]}
    assert [scores[name]["rows"] for name in ("valid", "test")] == [5, 5]
    assert set(scores["test"]["by_difficulty"]) <= {"5", "6", "7", "8"}
    assert 0 <= scores["test"]["metrics"]["token_accuracy"] <= 1
