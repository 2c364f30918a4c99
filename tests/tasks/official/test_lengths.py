"""Rows of length generalisation and of expressions, against the solvers of the tasks."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tasks
from tasks.base.positions import NO_LABEL
from tasks.edit_distance import EditDistance
from tasks.looped import PROBLEMS
from tasks.modular_expression import evaluate

COMPARED = ("looped_tf/*.tsv", "edit_distance.tsv", "arithmetic_expression_mod.tsv")


def numbers(text):
    return [int(word) for word in text.split()]


def operands_of(prompt, problem):
    """Return what stands before each separator of a published prompt."""
    found, rest = [], prompt
    for separator in problem.separators:
        at = rest.index(separator)
        found.append(rest[:at])
        rest = rest[at + 1 :]
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_looped(rows_of, name):
    """The published rows, padding scored and all; without it, a part of the same labels."""
    problem = PROBLEMS[name]
    whole = tasks.create("looped", problem=name, scored="all")
    answer = tasks.create("looped", problem=name)
    for row in rows_of(f"looped_tf/{name}.tsv")[name]:
        prompt, target, mask = (numbers(row[key]) for key in ("prompt", "target", "mask"))
        made = whole.numbers([whole.row(operands_of(prompt, problem))])
        assert made.source[0].tolist() == prompt, row
        assert (made.target[0] != NO_LABEL).astype(int).tolist() == mask
        scored = np.flatnonzero(mask)
        assert made.target[0, scored].tolist() == [target[place] for place in scored]
        assert whole.source_length(int(row["length"])) == int(row["width"])
        part = answer.numbers([answer.row(operands_of(prompt, problem))]).target[0]
        kept = part != NO_LABEL
        assert (part[kept] == made.target[0][kept]).all()
        assert (
            kept.sum()
            == mask.count(1) - target.count(problem.pad) + (0 if problem.has_known_length else 1)
            or name == "modulo10"
        )  # whose padding is a digit, too


def test_padding_is_no_label_by_default():
    """Upstream asks for every pad: then most labels of a short row say nothing of the problem."""
    rows = {
        scored: tasks.create("looped", problem="copy", scored=scored).row([[1, 0]])
        for scored in ("answer", "all")
    }
    assert rows["all"].target[2:] == ("1", "0", "_", "_", "_", "_")
    assert set(rows["answer"].target[4:]) == {"<unscored>"}


def test_edit_distance(rows_of):
    for row in rows_of("edit_distance.tsv")["edit_distance"]:
        example = EditDistance.row(row["first"], row["second"])
        assert int("".join(example.target[-3:])) == int(row["cost"])
        assert abs(len(row["first"]) - len(row["second"])) <= 6
        assert len(row["first"]) <= len(row["second"])


def test_edit_distances_of_our_own_are_right_and_of_both_kinds():
    def slow(first, second):
        table = [[2 * (i + j) for j in range(len(second) + 1)] for i in range(len(first) + 1)]
        for i, a in enumerate(first, 1):
            for j, b in enumerate(second, 1):
                around = table[i - 1][j] + 2, table[i][j - 1] + 2
                table[i][j] = min(*around, table[i - 1][j - 1] + 3 * (a != b))
        return table[-1][-1]

    costs = []
    for row in tasks.create("edit_distance", train_lengths=[4, 12]).split("train")[:200]:
        text = "".join(row.source).removesuffix("=___")
        first, second = text.split("|")
        assert len(first) <= len(second)
        assert int("".join(row.target[-3:])) == slow(first, second)
        costs.append(slow(first, second) / len(second))
    assert min(costs) < 0.5  # a few edits
    assert max(costs) > 2  # nothing in common


def test_expressions(rows_of):
    for row in rows_of("arithmetic_expression_mod.tsv")["arithmetic_expression_mod"]:
        words = row["expression"].split()
        assert evaluate(words, modulus=int(row["modulus"])) == int(row["answer"])
        assert sum(word in "+-*/" for word in words) == int(row["steps"])


@pytest.mark.parametrize("modulus", [2, 3, 11])
def test_expressions_of_our_own_have_their_values_and_no_useless_brackets(modulus):
    task = tasks.create("modular_expression", modulus=modulus)
    rows = task.split("train")[:150]
    for row in rows:
        words = list(row.source[:-1])
        assert evaluate(words, modulus=modulus) == int(row.target[-1])
        assert sum(word in "+-*/" for word in words) == row.difficulty
        text = " ".join(words)
        assert not re.search(r"\( \d+ \)|^\( [^()]* \)$", text), text
    labels = [int(row.target[-1]) for row in rows]
    assert len(set(labels)) == modulus


def test_values_of_graphs_are_those_of_the_assignments():
    task = tasks.create("dag_arithmetic", operators="+*-")
    for row in task.split("longer")[:20]:
        assignments = []
        for text in " ".join(row.source).split(" , "):
            terms, name = text.split(" = ")
            words = [int(word) if word.isdigit() else word for word in terms.split()]
            assignments.append((name, words))
        assert task.row(assignments) == row


def test_sums_of_operands():
    task = tasks.create("operand_addition")
    for row in task.split("longer")[:50]:
        terms = "".join(row.source).partition("=")[0].split("+")
        total = int("".join(row.target[-5:][::-1]))
        assert total == sum(map(int, terms))
        assert len(terms) == row.difficulty


def test_a_cellular_automaton_does_as_its_rule_says():
    task = tasks.create("cellular", rule=110)
    rule = {(1, 1, 1): 0, (1, 1, 0): 1, (1, 0, 1): 1, (1, 0, 0): 0}
    rule |= {(0, 1, 1): 1, (0, 1, 0): 1, (0, 0, 1): 1, (0, 0, 0): 0}
    for row in task.split("longer")[:20]:
        cells = [int(word) for word in row.source[8:]]
        steps = int("".join(row.source[:7][::-1]), 2)
        for _ in range(steps):
            cells = [rule[cells[i - 1], cells[i], cells[(i + 1) % 24]] for i in range(24)]
        assert [*map(int, row.target[8:])] == cells
        assert steps == row.difficulty
