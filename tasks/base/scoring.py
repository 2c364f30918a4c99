"""How predictions are scored: one place for every task.

Predictions are compared with the gold target as *words*, never as vocabulary ids: a gold token that
training never showed has the unknown id, and so has every wrong guess for it.

Sequence to sequence, for a gold target y of n tokens and an output z of m tokens:

    exact_match       the model ended its output by itself, and z = y. The headline. An output that
                      was cut off is wrong, however well it begins.
    prefix_match      z begins with y, whatever follows and whether or not it ended.
    eos_oracle_match  the output decoded with the end token forbidden, cut to n tokens, is y
                      (Newman et al. 2020, arXiv 2010.07174): right but for when to stop.
    token_accuracy    share of right tokens among the n + 1 of (y, end), position by position, over
                      all rows; past the end of z every token is wrong. Not teacher-forced, and not
                      comparable with exact match.

Classification: accuracy.

Language modelling, over the tokens of a split's windows, each predicted from those before it in its
window:

    loss           mean cross entropy in nats per token.
    perplexity     exp(loss), per token: comparable between models of one tokenizer alone.
    bits_per_byte  loss · tokens / bytes / ln 2, with the tokens and the UTF-8 bytes of the whole
                   split: comparable between tokenizers too. The headline; lower is better.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.base.task import EOS, Example, Task

Table = dict[str, dict[str, float]]
"""Row label → {metric: share right, "rows": count}."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model wrote for one example."""

    tokens: tuple[str, ...]
    """Output tokens without the end token; for classification the one label."""
    finished: bool = True
    """Whether the model wrote the end token itself; False where decoding was cut off."""


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

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


HEADLINE_METRICS = {
    "sequence_to_sequence": "exact_match",
    "classification": "accuracy",
    "language_modelling": "bits_per_byte",
}
"""What a kind of task is judged by."""

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte"})
"""Metrics of which less is better; of all others more is."""


def headline_metric(kind: str) -> str:
    """Return the name of the metric that a kind of task is judged by."""
    return HEADLINE_METRICS[kind]


def selection_score(kind: str, metrics: Mapping[str, float]) -> float:
    """Return what chooses among weights, higher being better: the headline, negated if need be.

    What is no number is worse than every number.
    """
    name = headline_metric(kind)
    value = -metrics[name] if name in LOWER_IS_BETTER else metrics[name]
    return -math.inf if math.isnan(value) else value


def is_exact(example: Example, prediction: Prediction) -> bool:
    """Return whether an output is the whole target and was ended by the model."""
    return prediction.finished and prediction.tokens == example.target


def score_sequences(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    oracle_predictions: Sequence[Prediction] | None = None,
) -> dict[str, float]:
    """Return the sequence metrics of the module's docstring, each between 0 and 1.

    Args:
        examples: the gold rows.
        predictions: one for each, decoded up to a limit above the longest target.
        oracle_predictions: one for each, decoded with the end token forbidden for at least the
            gold length; without them ``eos_oracle_match`` is left out.

    Raises:
        ValueError: no rows, or another number of predictions than of rows.
    """
    _check_lengths(examples, predictions)
    right_tokens = total_tokens = exact = prefix = 0
    for example, prediction in zip(examples, predictions, strict=True):
        gold = (*example.target, EOS)
        written = (*prediction.tokens, EOS) if prediction.finished else prediction.tokens
        right_tokens += sum(a == b for a, b in zip(gold, written, strict=False))
        total_tokens += len(gold)
        exact += is_exact(example, prediction)
        prefix += _begins_with(prediction.tokens, example.target)
    metrics = {
        "exact_match": exact / len(examples),
        "prefix_match": prefix / len(examples),
        "token_accuracy": right_tokens / total_tokens,
    }
    if oracle_predictions is not None:
        _check_lengths(examples, oracle_predictions)
        right = sum(
            _begins_with(prediction.tokens, example.target)
            for example, prediction in zip(examples, oracle_predictions, strict=True)
        )
        metrics["eos_oracle_match"] = right / len(examples)
    return metrics


def score_classification(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, float]:
    """Return the accuracy of predicted labels.

    Raises:
        ValueError: no rows, or another number of predictions than of rows.
    """
    _check_lengths(examples, predictions)
    right = sum(p.tokens == e.target for e, p in zip(examples, predictions, strict=True))
    return {"accuracy": right / len(examples)}


def score_language(loss: float, *, num_tokens: int, num_bytes: int) -> dict[str, float]:
    """Return the metrics of a split of text.

    Args:
        loss: mean cross entropy in nats per token.
        num_tokens: of the whole split, boundaries between documents among them.
        num_bytes: UTF-8 bytes of the text that these tokens stand for.
    """
    try:
        perplexity = math.exp(loss)
    except OverflowError:
        perplexity = math.inf
    bits_per_byte = loss * num_tokens / num_bytes / math.log(2)
    return {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits_per_byte}


def correctness(
    kind: str, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[bool]:
    """Return for each row whether the headline metric counts it as right."""
    if kind == "classification":
        return [p.tokens == e.target for e, p in zip(examples, predictions, strict=True)]
    return [is_exact(e, p) for e, p in zip(examples, predictions, strict=True)]


def table_by(
    examples: Sequence[Example],
    correct: Sequence[bool],
    key: Callable[[Example], Any],
    metric: str = "exact_match",
) -> Table:
    """Return the share of right rows for each value of a key, in the order of the values.

    Rows whose key is None are left out. A number is shown without trailing zeros.
    """
    groups: dict[Any, list[bool]] = collections.defaultdict(list)
    for example, right in zip(examples, correct, strict=True):
        value = key(example)
        if value is not None:
            groups[value].append(right)
    return {
        f"{value:g}" if isinstance(value, (int, float)) else str(value): {
            metric: sum(groups[value]) / len(groups[value]),
            "rows": len(groups[value]),
        }
        for value in sorted(groups)
    }


def ceiling(task: Task, examples: Sequence[Example]) -> float:
    """Return the share of rows whose every target token occurs in a training target."""
    known = {token for row in task.splits()[task.train_split] for token in row.target}
    return sum(known.issuperset(example.target) for example in examples) / len(examples)


def chance(task: Task, examples: Sequence[Example]) -> float:
    """Return the expected score of uniform guesses.

    Classification: 1 / number of classes. Sequences: each token, and then the end, is guessed among
    the V target tokens of train and the end token: the mean over rows of (V + 1)^-(n + 1).
    """
    train = task.splits()[task.train_split]
    if task.kind == "classification":
        return 1 / len({row.target for row in train})
    choices = len({token for row in train for token in row.target}) + 1
    return sum(float(choices) ** -(len(e.target) + 1) for e in examples) / len(examples)


def majority(task: Task, examples: Sequence[Example]) -> float:
    """Return the score of always answering with train's most frequent target.

    Of several equally frequent ones the first in sorted order is taken.
    """
    counts = collections.Counter(row.target for row in task.splits()[task.train_split])
    answer = min(counts, key=lambda target: (-counts[target], target))
    return sum(example.target == answer for example in examples) / len(examples)


def score(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    oracle_predictions: Sequence[Prediction] | None = None,
) -> Scores:
    """Return every number of a scored split: metrics, baselines, ceiling and tables.

    Args:
        task: gives the kind, the training set and its own tables.
        examples: the rows scored, all of a split or a selection.
        predictions: one for each row.
        oracle_predictions: as in ``score_sequences``.

    Raises:
        ValueError: no rows, or another number of predictions than of rows.
    """
    if task.kind == "classification":
        metrics = score_classification(examples, predictions)
    else:
        metrics = score_sequences(examples, predictions, oracle_predictions)
    correct = correctness(task.kind, examples, predictions)
    metric = headline_metric(task.kind)
    return Scores(
        metrics=metrics,
        rows=len(examples),
        ceiling=ceiling(task, examples),
        chance=chance(task, examples),
        majority=majority(task, examples),
        by_category=table_by(examples, correct, lambda row: row.category or None, metric),
        by_difficulty=table_by(examples, correct, lambda row: row.difficulty, metric),
        tables=task.tables(examples, correct),
    )


def _begins_with(tokens: tuple[str, ...], target: tuple[str, ...]) -> bool:
    return tokens[: len(target)] == target


def _check_lengths(examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    if not examples:
        raise ValueError("no rows to score")
    if len(examples) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} rows")
