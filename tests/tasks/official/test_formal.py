"""Rows of formal languages and of state tracking, against the solvers of the tasks."""

from __future__ import annotations

import numpy as np
import pytest

import tasks
from tasks.base.task import UNSCORED
from tasks.chomsky import LANGUAGES
from tasks.dyck import Dyck, innermost
from tasks.flip_flop import FlipFlop
from tasks.groups import group_table

COMPARED = ("chomsky/*.tsv", "dyck.tsv", "flipflop.tsv", "word_problem*.tsv*")


def numbers(text):
    return [int(word) for word in text.split()]


def test_the_suite_is_whole(rows_of):
    assert set(rows_of("chomsky/*.tsv")) == set(LANGUAGES)


@pytest.mark.parametrize("name", LANGUAGES)
def test_chomsky(rows_of, name):
    language = LANGUAGES[name]
    ((_, rows),) = rows_of(f"chomsky/{name}.tsv").items()
    for row in rows:
        outputs, scored = language.solve(np.array([numbers(row["input"])]))
        assert outputs[0].tolist() == numbers(row["output"]), row
        assert scored[0].astype(int).tolist() == numbers(row["scored"]), row
        assert len(language.symbols) > max(numbers(row["input"]))
        assert len(language.labels) > max(numbers(row["output"]))
    # A length that is asked for gives as many tokens as it does there.
    for row in rows:
        asked = int(row["length"])
        sizes = {"train_lengths": [asked, asked], "test_lengths": [999]}
        task = tasks.create("chomsky", language=name, **sizes)
        made = task.split("train")[0]
        outputs = made.source.count("_")
        assert len(made.source) - outputs == int(row["input_tokens"])
        assert outputs == int(row["output_length"])


def test_odds_first_contradicts_its_own_text(rows_of):
    """Published code and rows put the second, fourth, … symbol first; the text says the first."""
    ((_, rows),) = rows_of("chomsky/odds_first.tsv").items()
    longer = [row for row in rows if row["input"].split()[::2] != row["input"].split()[1::2]]
    as_text = 0
    for row in longer:
        given = numbers(row["input"])
        assert numbers(row["output"]) == given[1::2] + given[::2]
        as_text += numbers(row["output"]) == given[::2] + given[1::2]
    assert as_text < len(longer) / 4


def test_dyck(rows_of):
    for row in rows_of("dyck.tsv")["dyck"]:
        words = row["sequence"].split()
        example = Dyck.row(words)
        assert len(words) == int(row["length_with_END"])
        closers = [label for label in example.target if label != UNSCORED]
        assert closers == [word for word in words if not word.startswith("(")]
        depth = np.cumsum([1 if word.startswith("(") else -1 for word in words[:-1]])
        assert depth.max() == int(row["reached_depth"]) <= int(row["max_depth"])
        assert innermost(words[:-1])[-1][0] == "END"


def test_flip_flop(rows_of):
    for row in rows_of("flipflop.tsv")["flipflop"]:
        example = FlipFlop.row(row["sequence"])
        scored = [label != UNSCORED for label in example.target]
        # They mark the bit, we the instruction before it.
        assert [False, *scored[:-1]] == [mark == "1" for mark in row["scored"]]
        for place, label in enumerate(example.target):
            assert label == UNSCORED or label == example.source[place + 1]
        assert (example.source[0], example.source[-2]) == ("w", "r")
        assert len(example.source) == int(row["length"])


def test_word_problem(rows_of):
    for row in rows_of("word_problem.tsv")["word_problem"]:
        task = tasks.create("word_problem", group=row["group"])
        assert task.row(numbers(row["input"])).target == tuple(row["target"].split())


def test_groups(rows_of):
    for row in rows_of("word_problem_groups.tsv.gz")["word_problem_groups"]:
        table = group_table(row["group"])
        assert table[int(row["index"])].tolist() == numbers(row["products_row"])
