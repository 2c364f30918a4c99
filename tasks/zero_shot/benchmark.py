"""The base of zero-shot benchmarks: questions with several continuations of one context.

A model reads no training data of the benchmark. It says how likely each continuation is after the
context, and the numbers of ``scoring`` are functions of those log-likelihoods and nothing else.

Text is formatted as lm-evaluation-harness does (EleutherAI, 0.4): the space between context and
continuation is the continuation's first character.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tasks.base.data_files import DataDamaged, DataFile, locate, read_lines
from tasks.base.lines import parse_json


@dataclass(frozen=True, slots=True)
class Question:
    """A context, its continuations, and which of them is right."""

    context: str
    """Text before the continuations; may be empty."""
    continuations: tuple[str, ...]
    """As they are scored, with the space that they begin with."""
    answer: int
    """Index of the right continuation."""
    lengths: tuple[int, ...]
    """Characters of each choice, without the space before it; ``acc_norm`` divides by them."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Group of the question in each grouping: ``{"paradigm": "wh_island"}``."""


def choices(
    context: str,
    texts: Sequence[str],
    answer: int,
    groups: Mapping[str, str] | None = None,
    delimiter: str = " ",
) -> Question:
    """Return the question whose continuations are texts with a delimiter before them.

    Raises:
        ValueError: the answer is none of the texts.
    """
    if not 0 <= answer < len(texts):
        raise ValueError(f"answer {answer} of {len(texts)} choices")
    return Question(
        context,
        tuple(delimiter + text for text in texts),
        answer,
        tuple(len(text) for text in texts),
        groups or {},
    )


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds one continuation."""

    log_likelihood: float
    """Sum over the continuation's tokens, in nats."""
    num_tokens: int
    """Tokens in that sum."""
    is_greedy: bool
    """Whether each of them is the most likely one after those before it."""


class Benchmark(abc.ABC):
    """One benchmark: its files, its questions, and how one question is scored."""

    name: ClassVar[str]
    title: ClassVar[str]
    """As a table prints it."""
    files: ClassVar[tuple[DataFile, ...]]
    metrics: ClassVar[tuple[str, ...]]
    """Keys of ``scoring.AVERAGES``, in the order of the table."""
    headline: ClassVar[str]
    """The one that the MoEUT paper reports."""
    groupings: ClassVar[tuple[str, ...]] = ()
    """Keys of ``Question.groups`` that have a table of their own."""
    averaged_over: ClassVar[str | None] = None
    """Grouping whose groups count equally in the total; None: questions count equally."""

    @abc.abstractmethod
    def read(self, limit: int | None = None) -> list[Question]:
        """Return the questions of the official files, the first ``limit`` of each.

        Raises:
            DataMissing, DataDamaged: see ``tasks.base.data_files``.
        """

    @abc.abstractmethod
    def values(self, question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
        """Return the value of each metric for one question, from its continuations' likelihoods.

        A metric that does not count the question is left out.
        """


def read_json_lines(file: DataFile) -> list[dict[str, Any]]:
    """Return the objects of an official file with one JSON object a line, after checking it.

    Raises:
        DataMissing, DataDamaged: see ``tasks.base.data_files``; also for a line that is not a
            JSON object.
    """
    return parse_json_lines(read_lines(file), str(locate(file)))


def parse_json_lines(lines: Iterable[str], name: str) -> list[dict[str, Any]]:
    """Return the objects of lines that are one JSON object each; ``name`` is for messages.

    Raises:
        DataDamaged: a line is not a JSON object; the message has its number.
    """
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataDamaged(f"{name}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataDamaged(f"{name}:{number}: expected a JSON object, found {line[:60]!r}")
        rows.append(row)
    return rows


def parse_rows(rows: Iterable[dict[str, Any]], parse: Any, name: str) -> list[Question]:
    """Return the question of each row.

    Raises:
        DataDamaged: a row lacks a field, or has one of a wrong kind.
    """
    questions = []
    for number, row in enumerate(rows, start=1):
        try:
            questions.append(parse(row))
        except KeyError as error:
            raise DataDamaged(f"{name}:{number}: no field {error}; has {', '.join(row)}") from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise DataDamaged(f"{name}:{number}: {error}") from error
    return questions
