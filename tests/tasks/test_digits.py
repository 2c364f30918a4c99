"""Multi-digit addition and multiplication: answers, lengths, formats, no overlap."""

import random
from collections import Counter

import pytest

from tasks.digits import Addition, Multiplication, distinct_pairs

SMALL = {"train_rows": 3000, "iid_rows": 200, "valid_rows": 60, "test_rows": 90}


def add(**options) -> Addition:
    lengths = {"train_digits": (1, 3), "valid_digits": (4, 4), "test_digits": (5, 7)}
    return Addition(**{**SMALL, **lengths, **options})


def multiply(**options) -> Multiplication:
    lengths = {"train_digits": (1, 3), "valid_digits": (4, 4), "test_digits": (5, 7)}
    return Multiplication(**{**SMALL, **lengths, **options})


def text(example) -> tuple[str, str]:
    return "".join(example.source), "".join(example.target)


@pytest.mark.parametrize("make", [add, multiply])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("pad", [False, True])
def test_answers_are_right_in_every_format(make, reverse, pad):
    task = make(reverse=reverse, pad=pad)
    step = -1 if reverse else 1
    for rows in task.splits().values():
        for example in rows:
            question, answer = text(example)
            left, right = (part[::step] for part in question.split(task.sign))
            wanted = int(left) + int(right) if task.sign == "+" else int(left) * int(right)
            assert int(answer[::step]) == wanted
            if pad:
                assert len(left) == len(right) == 7
                assert len(answer) == (8 if task.sign == "+" else 14)
            else:
                assert answer[::step] == str(wanted)
                assert example.difficulty == max(len(left), len(right))


def test_reversing_and_padding_change_no_number():
    plain, other = add().splits(), add(reverse=True, pad=True).splits()
    for name, rows in plain.items():
        for example, changed in zip(rows, other[name], strict=True):
            left, right = (int(part[::-1]) for part in text(changed)[0].split("+"))
            assert text(example)[0] == f"{left}+{right}"
            assert example.difficulty == changed.difficulty


def test_lengths_are_spread_equally():
    splits = add().splits()
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 3000,
        "valid_longer": 60,
        "iid": 200,
        "longer": 90,
    }

    def lengths(name):
        sides = (text(example)[0].split("+") for example in splits[name])
        return Counter((len(left), len(right)) for left, right in sides)

    train = lengths("train")
    assert set(train) == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
    assert train[1, 1] == 80  # of 100, 20 of which are left to iid
    others = [count for cell, count in train.items() if cell != (1, 1)]
    assert max(others) - min(others) <= 1
    assert lengths("iid")[1, 1] == 20
    assert {max(cell) for cell in lengths("valid_longer")} == {4}
    assert Counter(example.difficulty for example in splits["longer"]) == {5: 30, 6: 30, 7: 30}
    assert (7, 1) in lengths("longer")
    assert (1, 7) in lengths("longer")


@pytest.mark.parametrize("make", [add, multiply])
def test_no_question_is_in_two_splits_or_twice_in_one(make):
    splits = make(iid_rows=400).splits()
    questions = [text(example)[0] for rows in splits.values() for example in rows]
    assert len(questions) == len(set(questions))


def test_distinct_pairs_fill_a_small_range():
    pairs = distinct_pairs(random.Random(0), (1, 1), 100)
    assert sorted(pairs) == [(i, j) for i in range(10) for j in range(10)]
    many = distinct_pairs(random.Random(0), (30, 1), 50)
    assert len(set(many)) == 50
    assert all(len(str(left)) == 30 and right < 10 for left, right in many)


def test_without_a_validation_split_the_test_may_begin_one_longer_than_train():
    splits = add(valid_rows=0, test_digits=(4, 5)).splits()
    assert list(splits) == ["train", "iid", "longer"]
    assert {example.difficulty for example in splits["longer"]} == {4, 5}
    with pytest.raises(ValueError, match=r"task\.test_digits.*above task\.train_digits"):
        add(valid_rows=0, test_digits=(3, 5))


def test_rows_depend_on_the_seed_and_the_operation():
    assert add().splits() == add().splits()
    assert add().splits()["longer"] != add(seed=1).splits()["longer"]
    assert add().splits()["longer"] == add(train_rows=10, iid_rows=10).splits()["longer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_digits": (0, 3)}, "task.train_digits"),
        ({"train_digits": (1, 4)}, "task.valid_digits.*above task.train_digits"),
        ({"test_digits": (4, 6)}, "task.test_digits.*above task.valid_digits"),
        ({"reverse": "yes"}, "task.reverse='yes'"),
        ({"iid_rows": 0}, "task.iid_rows=0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        add(**options)


def test_more_rows_than_numbers_are_refused():
    task = add(train_digits=(1, 1), train_rows=81, iid_rows=20)
    with pytest.raises(ValueError, match=r"task\.train_rows=81: must be at most 80"):
        task.splits()
