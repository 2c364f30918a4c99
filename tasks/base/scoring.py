"""How the predictions of a split are scored: metrics, baselines, and tables by kind of row."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.base.metrics import (
    Answers,
    Prediction,
    headline_metric,
    is_exact,
    is_label,
    measure,
    scored_labels,
)
from tasks.base.options import exact_text
from tasks.base.task import LABELLINGS, SPECIAL_TOKENS, UNSCORED, Example, ExampleTask

Table = dict[str, dict[str, float]]
"""Row label → {metric: share right, "rows": count}."""


@dataclass(frozen=True)
class Scores:
    """Every number of one split, as reports show them."""

    metrics: dict[str, float]
    rows: int
    ceiling: float | None = None
    """Highest score open to a model that can write only target tokens seen in training."""
    chance: float | None = None
    """Expected score of uniform guesses."""
    majority: float | None = None
    """Score of always answering with train's most frequent target."""
    by_category: Table = field(default_factory=dict)
    by_difficulty: Table = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    """Tables that only this task has."""


def correctness(
    kind: str, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[bool]:
    """Return for each row whether the headline metric counts it as right."""
    is_right = is_exact if kind == "sequence_to_sequence" else is_label
    return [is_right(e, p) for e, p in zip(examples, predictions, strict=True)]


def table_by(
    examples: Sequence[Example],
    correct: Sequence[bool],
    key: Callable[[Example], Any],
    metric: str = "exact_match",
) -> Table:
    """Return the share of right rows for each value of a key, in the order of the values.

    Rows whose key is None are left out. A number is shown without trailing zeros, and in
    full.
    """
    groups: dict[Any, list[bool]] = collections.defaultdict(list)
    for example, right in zip(examples, correct, strict=True):
        value = key(example)
        if value is not None:
            groups[value].append(right)
    return {
        exact_text(value) if isinstance(value, (int, float)) else str(value): {
            metric: sum(groups[value]) / len(groups[value]),
            "rows": len(groups[value]),
        }
        for value in sorted(groups)
    }


def ceiling(task: ExampleTask, examples: Sequence[Example]) -> float:
    """Return the share of rows of which every target token occurs in a training target."""
    known = {*task.vocabularies()[1].tokens, UNSCORED}
    return sum(known.issuperset(example.target) for example in examples) / len(examples)


def chance(task: ExampleTask, examples: Sequence[Example]) -> float:
    """Return the expected score of uniform guesses.

    Classification: 1 / number of classes. Sequences: each token, and then the end, is guessed among
    the V target tokens of train and the end token: the mean over rows of (V + 1)^-(n + 1).
    Labels of positions: the mean over rows of V^-n, n the scored positions.
    """
    if task.kind == "classification":
        return 1 / len(task.classes())
    if task.kind in LABELLINGS:
        labels = len(task.classes())
        return sum(float(labels) ** -num_scored(e) for e in examples) / len(examples)
    choices = len(task.vocabularies()[1]) - len(SPECIAL_TOKENS) + 1
    return sum(float(choices) ** -(len(e.target) + 1) for e in examples) / len(examples)


def majority(task: ExampleTask, examples: Sequence[Example]) -> float:
    """Return the score of always answering with train's most frequent target, or label."""
    answer = task.majority_target()
    if task.kind in LABELLINGS:
        same = {*answer, UNSCORED}
        return sum(same.issuperset(example.target) for example in examples) / len(examples)
    return sum(example.target == answer for example in examples) / len(examples)


def num_scored(example: Example) -> int:
    """Return how many positions of a row are scored."""
    return len(example.target) - example.target.count(UNSCORED)


POSITION_BUCKETS = 32
"""Most rows of the table by position."""


def by_position(answers: Answers) -> Table:
    """Return the share of right labels by their place among the scored ones of a row, from 1.

    Where rows have many, neighbouring places are counted together, under the first of them.
    """
    most = max(map(num_scored, answers.examples))
    size = -(-most // POSITION_BUCKETS)
    right: dict[int, list[bool]] = collections.defaultdict(list)
    for example, prediction in zip(answers.examples, answers.predictions, strict=True):
        for place, is_right in enumerate(scored_labels(example, prediction)):
            right[place // size * size + 1].append(is_right)
    return _label_table(right)


def by_length(answers: Answers) -> Table:
    """Return the share of right labels by the row's difficulty, its length."""
    right: dict[float, list[bool]] = collections.defaultdict(list)
    for example, prediction in zip(answers.examples, answers.predictions, strict=True):
        right[example.difficulty] += scored_labels(example, prediction)
    return _label_table(right)


def _label_table(right: Mapping[Any, list[bool]]) -> Table:
    return {
        exact_text(key): {"label_accuracy": sum(found) / len(found), "rows": len(found)}
        for key, found in sorted(right.items())
    }


def score(task: ExampleTask, answers: Answers) -> Scores:
    """Return every number of a scored split: metrics, baselines, ceiling and tables.

    Args:
        task: gives the kind, the training set and its own tables.
        answers: to all rows of a split or to a selection.
    """
    examples = answers.examples
    correct = correctness(task.kind, examples, answers.predictions)
    metric = headline_metric(task.kind)
    tables = {**task.tables(examples, correct), **task.answer_tables(answers)}
    if task.kind in LABELLINGS:
        tables = {
            **tables,
            "length, label by label": by_length(answers),
            "place, label by label": by_position(answers),
            **task.label_tables(answers),
        }
    return Scores(
        metrics=measure(task.kind, answers, task.own_metrics),
        rows=len(examples),
        ceiling=ceiling(task, examples),
        chance=chance(task, examples),
        majority=majority(task, examples),
        by_category=table_by(examples, correct, lambda row: row.category or None, metric),
        by_difficulty=table_by(examples, correct, lambda row: row.difficulty, metric),
        tables=tables,
    )
