"""Nested modular arithmetic: published rows, depths, splits without overlap, balance, options."""

import csv
from collections import Counter

import pytest

from tasks.arithmetic import Arithmetic, evaluate, nesting_depth, steps


def small(**options) -> Arithmetic:
    sizes = {"train_rows": 2000, "iid_rows": 120, "valid_rows": 60, "test_rows": 80}
    return Arithmetic(**{**sizes, **options})


def text(example) -> str:
    return "".join(example.source)


@pytest.mark.golden
def test_published_rows_have_their_labels_and_depths(golden_dir):
    with open(golden_dir / "data" / "simple_arithmetic.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 200
    for row in rows:
        assert evaluate(row["input"]) == int(row["label"])
        # The published count includes the digits; its single operations are recorded as 1.
        assert nesting_depth(row["input"]) == max(1, int(row["code_depth"]) - 1)
    wrong = sum(evaluate(row["input"], modulus=9) != int(row["label"]) for row in rows)
    assert wrong > 50


def test_evaluation_agrees_with_python():
    for example in small(operators="+-*").splits()["deeper"]:
        assert str(eval(text(example)) % 10) == example.target[0]


@pytest.mark.parametrize("bad", ["", "1", "(1+2", "(1+2))", "(1+)", "1+2", "(1+2+3)", "(1a2)"])
def test_malformed_expressions_are_refused(bad):
    with pytest.raises(ValueError, match="bracketed expression"):
        evaluate(bad)


def test_splits_have_their_depths_and_sizes():
    splits = small().splits()
    assert list(splits) == ["train", "valid_deeper", "iid", "deeper"]
    depths = {
        name: Counter(nesting_depth(text(example)) for example in rows)
        for name, rows in splits.items()
    }
    assert depths["train"] == {1: 200, 2: 500, 3: 500, 4: 500, 5: 500}
    assert depths["iid"] == {2: 30, 3: 30, 4: 30, 5: 30}
    assert depths["valid_deeper"] == {6: 60}
    assert depths["deeper"] == {7: 40, 8: 40}
    for rows in splits.values():
        for example in rows:
            assert example.difficulty == nesting_depth(text(example))
            assert len(example.source) <= 50


def test_no_expression_is_in_two_splits():
    splits = small(modulus=4, train_rows=6000).splits()
    seen = {name: {text(example) for example in rows} for name, rows in splits.items()}
    names = list(seen)
    for position, name in enumerate(names):
        for other in names[position + 1 :]:
            assert not seen[name] & seen[other]
    for name in names[1:]:
        assert len(seen[name]) == len(splits[name])


def test_labels_are_balanced_on_request():
    balanced = Counter(
        (example.difficulty, example.target[0])
        for example in small(balance="labels").splits()["train"]
        if example.difficulty > 1
    )
    assert set(balanced.values()) == {50}
    plain = Counter(example.target[0] for example in small().splits()["train"])
    assert 0.2 < plain["0"] / sum(plain.values()) < 0.35


def test_operands_grow_on_both_sides_unless_asked_otherwise():
    def left_shares(**options) -> float:
        rows = small(branching_deeper=0.0, **options).splits()["deeper"]
        return sum(text(example).startswith("((") for example in rows) / len(rows)

    assert left_shares(grow_left=0.0) == 0.0
    assert 0.3 < left_shares() < 0.7


def test_outputs():
    label, answer, every = (small(output=output) for output in ("label", "answer", "steps"))
    assert label.kind == "classification"
    assert answer.kind == every.kind == "sequence_to_sequence"
    assert label.splits()["iid"] == answer.splits()["iid"]
    for example, short in zip(every.splits()["deeper"], label.splits()["deeper"], strict=True):
        assert example.source == short.source
        assert list(example.target) == [str(value) for value in steps(text(example))]
        assert example.target[-1:] == short.target


def test_without_a_validation_split_the_test_may_begin_one_deeper_than_train():
    splits = small(valid_rows=0, test_depths=(6, 7)).splits()
    assert list(splits) == ["train", "iid", "deeper"]
    assert {example.difficulty for example in splits["deeper"]} == {6, 7}
    with pytest.raises(ValueError, match=r"task\.test_depths.*above task\.train_depths"):
        small(valid_rows=0, test_depths=(5, 7))


def test_rows_depend_on_the_seed_and_on_nothing_else():
    assert small().splits() == small().splits()
    assert small().splits()["iid"] != small(seed=1).splits()["iid"]
    assert small().splits()["deeper"] == small(train_rows=100, iid_rows=8).splits()["deeper"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulus": 11}, "task.modulus=11"),
        ({"modulus": 1}, "task.modulus=1"),
        ({"operators": "+/"}, "task.operators='\\+/'"),
        ({"operators": ""}, "task.operators=''"),
        ({"train_depths": (3, 2)}, "task.train_depths"),
        ({"train_depths": (1, 1)}, "task.train_depths"),
        ({"train_depths": [1, 6]}, "task.valid_depths.*above task.train_depths"),
        ({"test_depths": 7}, "task.test_depths=7: expected"),
        ({"train_rows": 0}, "task.train_rows=0"),
        ({"branching": 1.5}, "task.branching=1.5"),
        ({"max_length": 32}, "task.max_length=32: must be at least 33"),
        ({"train_rows": 10.0}, "task.train_rows=10.0"),
        ({"balance": "label"}, "task.balance='label'"),
        ({"output": "value"}, "task.output='value'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_too_many_distinct_rows_are_refused():
    task = small(modulus=2, operators="+", train_depths=(1, 2), iid_rows=5000)
    with pytest.raises(ValueError, match="of depth 2 not found for 'iid'"):
        task.splits()
