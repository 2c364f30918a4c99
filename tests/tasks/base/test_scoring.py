"""Scoring: no trick with the end token or with truncation may raise exact match."""

from __future__ import annotations

import pytest

from tasks.base import scoring
from tasks.base.scoring import Prediction
from tasks.base.task import EOS, UNKNOWN, Example, Task

GOLD = Example(("x",), ("a", "b", "c"))


class Fixed(Task):
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


def one(tokens: str, finished: bool = True) -> dict[str, float]:
    return scoring.score_sequences([GOLD], [Prediction(tuple(tokens.split()), finished)])


@pytest.mark.parametrize(
    ("tokens", "finished", "exact", "prefix", "token_accuracy"),
    [
        ("a b c", True, 1, 1, 1.0),
        ("a b c", False, 0, 1, 3 / 4),  # right, but it never ended
        ("a b", True, 0, 0, 2 / 4),  # a truncated output is wrong
        ("a b", False, 0, 0, 2 / 4),
        ("a b c d", True, 0, 1, 3 / 4),
        ("a b c a b c", False, 0, 1, 3 / 4),
        (f"a b c {EOS}", False, 0, 1, 1.0),  # an end token that did not stop the decoding
        ("", True, 0, 0, 0.0),
        ("b c", True, 0, 0, 0.0),  # shifted by one: every position is wrong
        (f"a b {UNKNOWN}", True, 0, 0, 3 / 4),
    ],
)
def test_sequence_metrics(tokens, finished, exact, prefix, token_accuracy):
    assert one(tokens, finished) == {
        "exact_match": exact,
        "prefix_match": prefix,
        "token_accuracy": token_accuracy,
    }


def test_unknown_token_never_matches_a_target_that_training_never_showed():
    task = Fixed("sequence_to_sequence", train=[GOLD], test=[Example(("x",), ("novel",))])
    _, vocabulary = task.vocabularies()
    written = vocabulary.decode(vocabulary.encode(("novel",)))
    scores = scoring.score(task, task.split("test"), [Prediction(tuple(written))])
    assert scores.metrics["exact_match"] == 0
    assert scores.ceiling == 0


def test_oracle_is_cut_to_the_gold_length():
    predictions = [Prediction(("a",), True)]
    right = scoring.score_sequences(
        [GOLD], predictions, [Prediction(tuple("abcxyz"), finished=False)]
    )
    wrong = scoring.score_sequences([GOLD], predictions, [Prediction(tuple("ab"), finished=False)])
    assert right["eos_oracle_match"] == 1
    assert right["exact_match"] == 0
    assert wrong["eos_oracle_match"] == 0
    assert "eos_oracle_match" not in scoring.score_sequences([GOLD], predictions)


def test_token_accuracy_is_over_tokens_of_all_rows():
    rows = [Example(("x",), ("a",) * 9), Example(("y",), ("b",))]
    predictions = [Prediction(("z",) * 9), Prediction(("b",))]
    # 1 end + 2 of 12 gold positions; a mean over rows would be (0.1 + 1) / 2
    assert scoring.score_sequences(rows, predictions)["token_accuracy"] == pytest.approx(3 / 12)


def test_baselines_and_ceiling_of_a_classification():
    train = [Example(("x",), (label,)) for label in "aabbbc"]
    test = [Example(("x",), (label,)) for label in "abbd"]
    task = Fixed("classification", train=train, test=test)
    predictions = [Prediction((label,)) for label in "aacd"]
    scores = scoring.score(task, test, predictions)
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
    scores = scoring.score(task, rows, predictions).to_dict()
    assert scores["by_category"] == {
        "easy": {"exact_match": 0.5, "rows": 2},
        "hard": {"exact_match": 0.0, "rows": 1},
    }
    assert list(scores["by_difficulty"]) == ["0.5", "2", "10"]  # by value, not by spelling
    assert scores["by_difficulty"]["10"] == {"exact_match": 0.0, "rows": 2}
    assert scores["tables"]["own"]["p"] == {"exact_match": 1.0, "rows": 1}
    assert scores["rows"] == 4


def test_wrong_number_of_predictions_is_refused():
    with pytest.raises(ValueError, match="0 predictions for 1 rows"):
        scoring.score_sequences([GOLD], [])
    with pytest.raises(ValueError, match="no rows"):
        scoring.score_classification([], [])
