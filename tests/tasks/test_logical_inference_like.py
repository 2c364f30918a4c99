"""Generated formulas: they relate as truth tables say, and are like the official ones."""

from __future__ import annotations

import collections

import pytest

import tasks
from tasks.base.options import OptionError
from tasks.logical_inference import OPERATORS, VARIABLES, operators, relation, truth
from tasks.logical_inference_like import LogicalInferenceLike


@pytest.fixture(scope="module")
def task():
    return LogicalInferenceLike(train_rows=4000, other_rows=600)


def sides(row):
    bar = row.source.index("|")
    return " ".join(row.source[:bar]), " ".join(row.source[bar + 1 :])


def test_every_row_relates_as_truth_tables_say(task):
    rows = [row for split in task.splits().values() for row in split]
    assert len({row.source for row in rows}) == len(rows) == 5800
    for row in rows:
        left, right = sides(row)
        assert relation(left, right) == row.target[0]
        assert max(operators(left), operators(right)) == row.difficulty
        assert not {truth(left), truth(right)} & {0, 2**64 - 1}
        assert len(set(row.source) & set(VARIABLES)) <= 4
        assert "not ( not" not in " ".join(row.source)


def test_splits_have_their_numbers_of_operators(task):
    levels = {name: {row.difficulty for row in rows} for name, rows in task.splits().items()}
    few = set(range(1, 7))
    assert levels == dict.fromkeys(("train", "valid", "iid"), few) | {
        "more_operators": set(range(7, 13))
    }


def test_labels_and_operators_are_about_as_often_as_in_the_official_rows(task):
    rows = [row for row in task.split("train") if row.difficulty > 1]
    labels = collections.Counter(row.target[0] for row in rows)
    shares = {label: count / len(rows) for label, count in labels.items()}
    # Official, two to six operators: # .53 to .59, = and ^ about .02 each, others .09 to .11 each.
    assert 0.47 < shares["#"] < 0.6
    assert all(0.08 < shares[label] < 0.14 for label in "<>|v")
    assert all(0.005 < shares[label] < 0.04 for label in "=^")
    words = collections.Counter(t for row in rows for t in row.source if t in OPERATORS)
    assert 0.34 < words["not"] / words.total() < 0.46  # official .37 to .46
    assert 0.9 < words["and"] / words["or"] < 1.1
    shorter = [min(map(operators, sides(row))) for row in rows]
    assert 0.4 < shorter.count(0) / len(rows) < 0.52


def test_the_seed_decides():
    one, same, other = (
        LogicalInferenceLike(train_rows=50, other_rows=10, seed=seed).data_hash()
        for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_operators": 0}, "1 to 40"),
        ({"test_operators": [6]}, "one or more from 7 to 40"),
        ({"test_operators": []}, "one or more from 7 to 40"),
        ({"other_rows": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        tasks.create("logical_inference_like", **options)


def test_too_few_rows_are_refused_with_their_number(monkeypatch):
    monkeypatch.setattr("tasks.logical_inference_like.TRIES", 1)
    task = LogicalInferenceLike(train_operators=1, test_operators=[2], train_rows=3000)
    with pytest.raises(OptionError, match=r"train_rows=3000: must be at most \d+, as many as"):
        task.splits()
