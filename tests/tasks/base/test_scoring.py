"""Scores of a split: baselines, the ceiling, and tables by kind of row."""

from __future__ import annotations

import pytest

import tasks
from tasks.base import scoring
from tasks.base.metrics import Answers, Prediction
from tasks.base.task import UNSCORED, Example, ExampleTask

GOLD = Example(("x",), ("a", "b", "c"))


class Fixed(ExampleTask):
    """A task over given rows."""

    name = "fixed"

    def __init__(self, kind: str, **splits: list[Example]) -> None:
        self._kind, self._splits = kind, splits

    @property
    def kind(self):
        return self._kind

    def splits(self):
        return self._splits

    def tables(self, examples, correct):
        return {"own": scoring.table_by(examples, correct, lambda row: row.source[0])}


def test_unknown_token_never_matches_a_target_that_training_never_showed():
    task = Fixed("sequence_to_sequence", train=[GOLD], test=[Example(("x",), ("novel",))])
    _, vocabulary = task.vocabularies()
    written = vocabulary.decode(vocabulary.encode(("novel",)))
    scores = scoring.score(task, Answers(task.split("test"), [Prediction(tuple(written))]))
    assert scores.metrics["exact_match"] == 0
    assert scores.ceiling == 0


def test_baselines_and_ceiling_of_a_classification():
    train = [Example(("x",), (label,)) for label in "aabbbc"]
    test = [Example(("x",), (label,)) for label in "abbd"]
    task = Fixed("classification", train=train, test=test)
    predictions = [Prediction((label,)) for label in "aacd"]
    scores = scoring.score(task, Answers(test, predictions))
    assert scores.metrics == {"accuracy": 0.5}
    assert scores.chance == pytest.approx(1 / 3)
    assert scores.majority == 0.5
    assert scores.ceiling == 0.75


def test_baselines_of_sequences():
    train = [Example((f"x{i}",), target) for i, target in enumerate((("a",), ("a",), ("b", "a")))]
    test = [Example(("y",), ("a",)), Example(("z",), ("a", "b")), Example(("w",), ("c",))]
    task = Fixed("sequence_to_sequence", train=train, test=test)
    assert scoring.majority(task, test) == pytest.approx(1 / 3)
    # two target tokens and the end: 3 choices at each of n + 1 steps
    assert scoring.chance(task, test) == pytest.approx((3**-2 + 3**-3 + 3**-2) / 3)
    assert scoring.ceiling(task, test) == pytest.approx(2 / 3)


def test_majority_of_a_tie_is_the_first_in_sorted_order():
    train = [Example(("x",), (label,)) for label in "ba"]
    task = Fixed("classification", train=train)
    assert scoring.majority(task, [Example(("y",), ("a",))]) == 1


def test_tables_by_category_and_difficulty():
    rows = [
        Example(("p",), ("a",), "easy", 2),
        Example(("q",), ("a",), "easy", 10),
        Example(("r",), ("a",), "hard", 10),
        Example(("s",), ("a",), "", 0.5),
    ]
    predictions = [Prediction(("a",)), Prediction(("b",)), Prediction(("a",), False)]
    predictions.append(Prediction(("a",)))
    task = Fixed("sequence_to_sequence", train=rows)
    scores = vars(scoring.score(task, Answers(rows, predictions)))
    assert scores["by_category"] == {
        "easy": {"exact_match": 0.5, "rows": 2},
        "hard": {"exact_match": 0.0, "rows": 1},
    }
    assert list(scores["by_difficulty"]) == ["0.5", "2", "10"]  # by value, not by spelling
    assert scores["by_difficulty"]["10"] == {"exact_match": 0.0, "rows": 2}
    assert scores["tables"]["own"]["p"] == {"exact_match": 1.0, "rows": 1}
    assert scores["rows"] == 4


def test_rows_of_a_table_are_told_apart_by_every_digit():
    rows = [Example(("x",), ("a",), "", number) for number in (1234567, 1234568, 2.5)]
    table = scoring.table_by(rows, [True, False, True], lambda row: row.difficulty)
    assert {key: cell["exact_match"] for key, cell in table.items()} == {
        "2.5": 1.0,
        "1234567": 1.0,
        "1234568": 0.0,
    }


def test_labels_are_counted_by_length_and_by_place():
    task = tasks.create("prefix_sums", train_lengths=[1, 2], test_lengths=[3])
    skip = UNSCORED
    examples = [
        Example(("1", "0"), ("1", "1"), difficulty=2.0),
        Example(("1", "0", "1", "1"), ("1", skip, "0", "1"), difficulty=4.0),
    ]
    answers = Answers(examples, [Prediction(("1", "0")), Prediction(("1", skip, "1", "1"))])
    scores = scoring.score(task, answers)
    assert scores.metrics["sequence_accuracy"] == 0.0
    assert scores.metrics["label_accuracy"] == pytest.approx(3 / 5)
    assert scores.metrics["mean_over_lengths"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.chance == pytest.approx((2**-2 + 2**-3) / 2)
    assert scores.tables["place, label by label"] == {
        "1": {"label_accuracy": 1.0, "rows": 2},
        "2": {"label_accuracy": 0.0, "rows": 2},
        "3": {"label_accuracy": 1.0, "rows": 1},
    }
    by_length = scores.tables["length, label by label"]
    assert by_length["4"] == {"label_accuracy": pytest.approx(2 / 3), "rows": 3}
    assert scores.by_difficulty["2"] == {"sequence_accuracy": 0.0, "rows": 1}
