"""Rows of reasoning_gym: those of our splits are the published items, and do not overlap."""

from __future__ import annotations

import collections
import json
import sys

import pytest

import tasks
from tasks.base.options import OptionError
from tasks.gym import UNFIT, payload_of

COMPARED = ("reasoning_gym.jsonl",)


UNSEEDED = {("list_functions", 0, 0)}
"""Items that upstream draws partly from Python's global generator: another each time."""


@pytest.fixture
def items(golden_dir):
    found = collections.defaultdict(dict)
    with open(golden_dir / "tasks" / "reasoning_gym.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found[row["task"], row["seed"]][row["index"]] = row["question"], row["answer"]
    return found


@pytest.mark.extras
def test_items_are_the_published_ones(items):
    pytest.importorskip("reasoning_gym")
    for (name, seed), rows in items.items():
        if name in UNFIT:
            continue
        made = tasks.create("gym", generator=name).pairs(seed, max(rows) + 1, {})
        for index, (question, answer) in rows.items():
            if (name, seed, index) in UNSEEDED:
                continue
            assert made[index] == (question, answer), (name, seed, index)


@pytest.mark.extras
def test_an_item_is_the_one_before_it_of_the_next_seed():
    """So splits have seeds further apart than they have rows."""
    pytest.importorskip("reasoning_gym")
    task = tasks.create("gym", generator="gcd", train_rows=40, valid_rows=30, test_rows=30)
    first, second = task.pairs(0, 10, {}), task.pairs(1, 10, {})
    assert first[1:] == second[:-1]
    splits = task.splits()
    sources = {name: {row.source for row in rows} for name, rows in splits.items()}
    assert not sources["train"] & sources["test"]
    assert "".join(splits["train"][0].source) == "777, 912"
    with pytest.raises(OptionError, match="did you mean 'gcd'"):
        tasks.create("gym", generator="gdc").splits()


@pytest.mark.extras
def test_items_are_the_same_each_time():
    pytest.importorskip("reasoning_gym")
    task = tasks.create("gym", generator="list_functions")
    assert task.pairs(0, 5, {}) == task.pairs(0, 5, {})


def test_generators_without_answers_are_refused(items):
    assert {name for (name, _), rows in items.items() for _, a in rows.values() if a is None} == {
        *UNFIT
    }
    for name in UNFIT:
        with pytest.raises(OptionError, match="scorer"):
            tasks.create("gym", generator=name)


def test_payloads_are_what_questions_do_not_share(items):
    """Of the delivered rows of two seeds, nothing that an answer depends on is cut off."""
    kept = {}
    for name in ("gcd", "products", "count_bits", "chain_sum", "binary_alternation"):
        questions = [q for seed in (0, 42) for q, _ in items[name, seed].values()]
        strip = payload_of(questions)
        kept[name] = strip(questions[0])
        assert len({strip(question) for question in questions}) == len(set(questions))
    assert kept["gcd"] == "777, 912"
    assert kept["products"] == "1663 * 5242"
    assert kept["count_bits"] == "1813382119"
    assert kept["chain_sum"].startswith("1663 - 5242 - 9376")
    assert kept["binary_alternation"] == "0000111011010111000110"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(OptionError, match="moeut-suite\\[gym\\]"):
        tasks.create("gym").splits()
