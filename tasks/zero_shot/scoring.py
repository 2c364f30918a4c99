"""Scores of a zero-shot benchmark, as functions of log-likelihoods.

    acc                the continuation with the largest log-likelihood is the right one
    acc_norm           likewise, log-likelihoods divided by the choice's number of characters
    acc_token          likewise, divided by the number of tokens (the MoEUT paper's); ties are wrong
    greedy_acc         every token of the one continuation is the most likely one (LAMBADA)
    perplexity         exp(-mean log-likelihood of the continuation)
    token_perplexity   exp(-mean of log-likelihood per token, averaged within a continuation first)

``acc``, ``acc_norm``, ``greedy_acc`` and ``perplexity`` are those of lm-evaluation-harness (which
calls ``greedy_acc`` ``acc``); there, of equal log-likelihoods the first one counts.

The standard error of a mean is that of the harness, sample standard deviation / sqrt(n); of a mean
over k groups it is sqrt(sum of squared standard errors) / k; of a perplexity p it is p times that
of the mean in its exponent (the delta method; the harness bootstraps it).

>>> question = choices("Question: 2 + 2?\\nAnswer:", ["four", "twenty-two"], 0)
>>> answers = [Likelihood(-3.0, 1, False), Likelihood(-4.0, 5, False)]
>>> choice_values(question, answers)
{'acc': 1.0, 'acc_norm': 0.0, 'acc_token': 0.0}
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.base.metrics import perplexity
from tasks.zero_shot.benchmark import Benchmark, Likelihood, Question, choices

__all__ = ["AVERAGES", "Result", "Score", "choice_values", "choices", "score", "word_values"]

AVERAGES: dict[str, str] = {
    "acc": "share",
    "acc_norm": "share",
    "acc_token": "share",
    "greedy_acc": "share",
    "perplexity": "perplexity",
    "token_perplexity": "perplexity",
}
"""Metric → what is made of its values: their mean (share), or exp(-mean) (perplexity)."""


@dataclass(frozen=True)
class Score:
    """One number."""

    value: float
    standard_error: float | None
    """None where a single question leaves none."""
    questions: int


@dataclass(frozen=True)
class Result:
    """Every number of one benchmark."""

    benchmark: str
    headline: str
    metrics: dict[str, Score]
    groups: dict[str, dict[str, dict[str, Score]]]
    """Grouping → group → metric, groups in the order of the files."""
    averaged_over: str | None
    chance: dict[str, float]
    """Metric → its value for a guess; only where there are continuations to guess among."""
    truncated: int = 0
    """Continuations whose context was cut on the left because the model's is shorter."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def choice_values(question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
    """Return ``acc``, ``acc_norm`` and ``acc_token`` of one question, each 0 or 1."""
    sums = [answer.log_likelihood for answer in answers]
    by_character = [_ratio(s, n) for s, n in zip(sums, question.lengths, strict=True)]
    by_token = [_ratio(answer.log_likelihood, answer.num_tokens) for answer in answers]
    right = by_token[question.answer]
    others = [value for i, value in enumerate(by_token) if i != question.answer]
    return {
        "acc": float(_first_largest(sums) == question.answer),
        "acc_norm": float(_first_largest(by_character) == question.answer),
        "acc_token": float(all(right > other for other in others)),
    }


def word_values(answer: Likelihood) -> dict[str, float]:
    """Return ``greedy_acc`` of one continuation, and the values that the perplexities average.

    >>> word_values(Likelihood(-3.0, 2, True))
    {'greedy_acc': 1.0, 'perplexity': -3.0, 'token_perplexity': -1.5}
    """
    return {
        "greedy_acc": float(answer.is_greedy),
        "perplexity": answer.log_likelihood,
        "token_perplexity": _ratio(answer.log_likelihood, answer.num_tokens),
    }


def _ratio(log_likelihood: float, length: int) -> float:
    return log_likelihood / length if length else -math.inf


def _first_largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def score(
    benchmark: Benchmark,
    questions: Sequence[Question],
    answers: Sequence[Sequence[Likelihood]],
    truncated: int = 0,
) -> Result:
    """Return every number of a benchmark.

    Args:
        benchmark: says which metrics, and how the total is averaged.
        questions: those that were asked.
        answers: for each, the likelihood of each of its continuations.
        truncated: kept in the result.

    Raises:
        ValueError: no questions, or another number of answers than of continuations.
    """
    if not questions:
        raise ValueError(f"{benchmark.name}: no questions to score")
    values = [
        benchmark.values(question, row) for question, row in zip(questions, answers, strict=True)
    ]
    groups = {}
    for grouping in benchmark.groupings:
        members: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
        for question, row in zip(questions, values, strict=True):
            members[question.groups[grouping]].append(row)
        groups[grouping] = {
            group: _means(benchmark.metrics, rows) for group, rows in members.items()
        }
    total = _means(benchmark.metrics, values)
    if benchmark.averaged_over is not None:
        parts = list(groups[benchmark.averaged_over].values())
        total = {name: _mean_of_groups([part[name] for part in parts]) for name in total}
    return Result(
        benchmark=benchmark.name,
        headline=benchmark.headline,
        metrics=total,
        groups=groups,
        averaged_over=benchmark.averaged_over,
        chance=_chance(questions, values),
        truncated=truncated,
    )


def _chance(questions: Sequence[Question], values: Sequence[dict[str, float]]) -> dict[str, float]:
    guesses = collections.defaultdict(list)
    for question, row in zip(questions, values, strict=True):
        if len(question.continuations) > 1:
            for name in row:
                guesses[name].append(1 / len(question.continuations))
    return {name: math.fsum(shares) / len(shares) for name, shares in guesses.items()}


def _means(metrics: Sequence[str], rows: Sequence[dict[str, float]]) -> dict[str, Score]:
    """Return the score of each metric over the questions that it counts; without any, none."""
    counted = {name: [row[name] for row in rows if name in row] for name in metrics}
    return {name: _mean(name, values) for name, values in counted.items() if values}


def _mean(metric: str, values: Sequence[float]) -> Score:
    n = len(values)
    mean = math.fsum(values) / n
    error = None
    if n > 1:
        error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    if AVERAGES[metric] == "perplexity":
        value = perplexity(-mean)
        return Score(value, None if error is None else value * error, n)
    return Score(mean, error, n)


def _mean_of_groups(parts: Sequence[Score]) -> Score:
    """Return the mean in which each group counts the same, whatever its size."""
    errors = [part.standard_error for part in parts]
    known = [error for error in errors if error is not None]
    return Score(
        math.fsum(part.value for part in parts) / len(parts),
        math.sqrt(math.fsum(e * e for e in known)) / len(parts)
        if len(known) == len(parts)
        else None,
        sum(part.questions for part in parts),
    )
