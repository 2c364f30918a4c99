"""Tasks with a label at every position: targets aligned with the input, a mask of what is scored.

A row's target has a label for each source token, or ``UNSCORED`` where there is none. Causal and
bidirectional models read the same rows: a label belongs to the token that stands there, and is not
the next token. An answer that is longer than its question, or a single one, is read at further
tokens of the source that stand for nothing else.

A grid is such a row: its cells from the first line to the last.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np

from tasks.base.task import UNSCORED, Example, ExampleTask, Kind, Vocabulary

NO_LABEL = -1
"""Number of a label that is not there, and of a source token past a row's end."""

STRETCH = 2**32
"""Rows that one training run may see of an endless split: run s begins at row s · ``STRETCH``."""

CHUNK = 1024
"""Rows that are made together where all of them are walked over."""


@dataclass(frozen=True)
class Rows:
    """Some rows as numbers.

    Args:
        source: (N, T) numbers of the task's ``symbols``; ``NO_LABEL`` past a row's end.
        target: (N, T) numbers of the task's ``labels``; ``NO_LABEL`` where nothing is scored.
    """

    source: np.ndarray
    target: np.ndarray

    def __post_init__(self) -> None:
        if self.source.shape != self.target.shape:
            raise ValueError(f"source {self.source.shape}, target {self.target.shape}")

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Source tokens of each row, (N,)."""
        return (self.source >= 0).sum(axis=1)


class PositionRows(Sequence[Example]):
    """Rows of a split that are made when they are asked for, together or one by one."""

    is_endless = False
    """Whether there are always further rows, so that none is seen twice."""

    def __init__(self, task: PositionTask, count: int) -> None:
        self.task, self._count = task, count

    def arrays(self, rows: np.ndarray) -> Rows:
        """Return some rows as numbers.

        Args:
            rows: (B,) numbers of rows, in any order.
        """
        raise NotImplementedError

    def about(self, rows: np.ndarray) -> list[tuple[str, float]]:
        """Return category and difficulty of some rows (B,)."""
        raise NotImplementedError

    def loops(self, rows: np.ndarray) -> np.ndarray:
        """Return the repeats (B,) of some rows where those follow a row's length.

        Raises:
            NotImplementedError: rows have no length.
        """
        raise NotImplementedError("rows of no length")

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return self.examples(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.examples(np.array([index % len(self)]))[0]

    def __iter__(self) -> Iterator[Example]:
        for first in range(0, len(self), CHUNK):
            yield from self.examples(np.arange(first, min(first + CHUNK, len(self))))

    def examples(self, rows: np.ndarray) -> list[Example]:
        """Return some rows (B,) as tokens."""
        sides = tokens_of(self.task, self.arrays(rows))
        return [
            Example(source, target, category, difficulty)
            for (source, target), (category, difficulty) in zip(
                sides, self.about(rows), strict=True
            )
        ]


def tokens_of(task: PositionTask, rows: Rows) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the source tokens and the labels of each row."""
    symbols, labels = task.symbols(), (*task.labels(), UNSCORED)
    sources, targets, lengths = (a.tolist() for a in (rows.source, rows.target, rows.lengths))
    return [
        (
            tuple(symbols[number] for number in source[:length]),
            tuple(labels[number] for number in target[:length]),  # -1 is the last: UNSCORED
        )
        for source, target, length in zip(sources, targets, lengths, strict=True)
    ]


class PositionTask(ExampleTask):
    """Base of the tasks with labels of positions; a subclass names its symbols and labels."""

    is_causal: ClassVar[bool] = False
    """Whether later tokens give labels away, so that a model has to be causal."""

    @property
    def kind(self) -> Kind:
        """Return causal_labelling for a task that is causal, position_labelling for any other."""
        return "causal_labelling" if self.is_causal else "position_labelling"

    def symbols(self) -> tuple[str, ...]:
        """Return the source tokens, in the order of their numbers."""
        raise NotImplementedError

    def labels(self) -> tuple[str, ...]:
        """Return the labels, in the order of their numbers."""
        raise NotImplementedError

    def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
        """Return the source and the target vocabulary: every symbol and label, seen or not."""
        return Vocabulary(self.symbols()), Vocabulary(self.labels())

    def classes(self) -> tuple[str, ...]:
        """Return the labels in the order of their numbers."""
        return self.labels()

    def numbers(self, examples: Sequence[Example]) -> Rows:
        """Return rows of tokens as numbers.

        Raises:
            KeyError: a token is no symbol, or a label is not one of the task's.
        """
        symbols = {token: number for number, token in enumerate(self.symbols())}
        labels = {label: number for number, label in enumerate(self.labels())} | {UNSCORED: -1}
        longest = max((len(example.source) for example in examples), default=1)
        source = np.full((len(examples), longest), NO_LABEL, dtype=np.int64)
        target = source.copy()
        for row, example in enumerate(examples):
            source[row, : len(example.source)] = [symbols[token] for token in example.source]
            target[row, : len(example.target)] = [labels[label] for label in example.target]
        return Rows(source, target)

    def majority_target(self) -> tuple[str, ...]:
        """Return train's most frequent label, of its first rows; it is what a guess repeats."""
        rows = self.splits()[self.train_split]
        if isinstance(rows, PositionRows):
            target = rows.arrays(np.arange(min(len(rows), CHUNK))).target
        else:
            target = self.numbers(rows).target
        counts = np.bincount(target[target >= 0], minlength=len(self.labels()))
        return (self.labels()[int(counts.argmax())],)
