"""Objectives of tasks with a label at every position, and batches of rows that are generated.

The model reads ``BOS x``; the label of a token is read off where it stands. Rows of a generated
task are made batch by batch, from their numbers alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from runners.training.batches import IGNORE, TARGETS, Batch, Columns, Order, to_device
from runners.training.objective import Objective
from tasks.base.metrics import Answers, Prediction
from tasks.base.positions import NO_LABEL, STRETCH, PositionRows, PositionTask, Rows
from tasks.base.task import UNKNOWN, UNSCORED, Example, Vocabulary

SAMPLE = 1024
"""Rows of an endless split that stand for all of them where lengths are asked for."""


@dataclass(frozen=True)
class Coding:
    """How numbers of symbols and labels become what a model reads and predicts.

    Args:
        symbols: (number of symbols + 1,) id of each; the last one is padding.
        labels: (number of labels + 1,) id of each; the last one is ``IGNORE``.
    """

    symbols: np.ndarray
    labels: np.ndarray

    def tokens(self, rows: Rows) -> np.ndarray:
        """Return (N, T + 1) ids, a begin in front."""
        return np.pad(self.symbols[rows.source], ((0, 0), (1, 0)), constant_values=Vocabulary.bos)

    def targets(self, rows: Rows) -> np.ndarray:
        """Return (N, T + 1) ids, ``IGNORE`` at the begin and where nothing is scored."""
        return np.pad(self.labels[rows.target], ((0, 0), (1, 0)), constant_values=IGNORE)


class Blocks:
    """Rows that are made many at a time, since those of one length are made together."""

    SIZE = 4096

    def __init__(self, rows_of: Callable[[np.ndarray], Rows]) -> None:
        self._rows_of = rows_of
        self._made: dict[int, Rows] = {}

    def rows(self, rows: np.ndarray) -> Rows:
        """Return some rows (B,) as numbers."""
        numbers, places = np.divmod(rows, self.SIZE)
        parts = []
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            block = self._block(number)
            parts.append((chosen, block.source[places[chosen]], block.target[places[chosen]]))
        width = max(source.shape[1] for _, source, _ in parts)
        source = np.full((len(rows), width), NO_LABEL, dtype=np.int16)
        target = source.copy()
        for chosen, part, labels in parts:
            source[chosen, : part.shape[1]] = part
            target[chosen, : part.shape[1]] = labels
        return Rows(source, target)

    def _block(self, number: int) -> Rows:
        if number not in self._made:
            # The two last ones: a batch may lie across a border.
            self._made = dict(list(self._made.items())[-1:])
            first = number * self.SIZE
            made = self._rows_of(np.arange(first, first + self.SIZE))
            self._made[number] = Rows(made.source.astype(np.int16), made.target.astype(np.int16))
        return self._made[number]


@dataclass(frozen=True)
class PositionColumns(Columns):
    """Rows that ``rows_of`` makes of their numbers."""

    rows_of: Callable[[np.ndarray], Rows]
    coding: Coding
    lengths: np.ndarray
    """(N,) source tokens of each row, or those of a sample where rows have no end."""
    is_endless: bool = False
    """Whether there are always further rows, so that none is seen twice."""

    loops_of: Callable[[np.ndarray], np.ndarray] | None = None
    """Repeats of rows (B,) where those follow a row's length; None: rows have no length."""

    def loops(self, rows: np.ndarray) -> np.ndarray:
        """Return how many repeats each of some rows (B,) is to have."""
        return super().loops(rows) if self.loops_of is None else self.loops_of(rows)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """The rows of an endless split, as batches ask for them."""
        return Blocks(self.rows_of)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def shape(self) -> np.ndarray:
        """Return (N, 1): tokens that the model reads of each row."""
        return self.lengths[:, None] + 1

    def longest(self, rows: np.ndarray) -> int:
        """Return the most tokens that the model reads of one of some rows (B,)."""
        if not self.is_endless:
            return super().longest(rows)
        return int(self.blocks.rows(rows).lengths.max()) + 1

    def order(self, *, batch_size: int, tokens_per_batch: int | None, seed: int) -> Order:
        """Return which rows the batch of a step holds: of an endless split the next ones."""
        if not self.is_endless:
            return super().order(
                batch_size=batch_size, tokens_per_batch=tokens_per_batch, seed=seed
            )
        if tokens_per_batch is not None:
            batch_size = max(1, tokens_per_batch // int(self.shape.max()))
        return StreamOrder(batch_size, seed)

    def batch(self, rows: np.ndarray, *, device: torch.device) -> Batch:
        """Return ``tokens``, ``tokens_mask`` and ``targets`` of some rows, each (B, T + 1)."""
        made = self.blocks.rows(rows) if self.is_endless else self.rows_of(rows)
        lengths = made.lengths + 1
        longest = int(lengths.max())
        tokens = self.coding.tokens(made)[:, :longest]
        targets = self.coding.targets(made)[:, :longest]
        tensors = {
            "tokens": to_device(tokens, device),
            "tokens_mask": to_device(np.arange(longest) < lengths[:, None], device),
            TARGETS: to_device(targets, device),
        }
        return Batch(
            tensors=tensors,
            rows=rows,
            num_targets=int((targets != IGNORE).sum()),
            num_tokens=int(lengths.sum()),
        )


class StreamOrder(Order):
    """Rows one after the other, none of them twice; run ``seed`` begins at a place of its own."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self._batch_size = batch_size
        self._first = seed % 2**29 * STRETCH

    def rows(self, step: int) -> np.ndarray:
        """Return the row numbers (B,) of the batch of a step, counted from 0."""
        first = self._first + step * self._batch_size
        return np.arange(first, first + self._batch_size)


class PositionObjective(Objective):
    """Base: one form reads a label off each position."""

    task: PositionTask

    def __init__(self, task: PositionTask) -> None:
        super().__init__(task)
        self.labels = task.labels()

    def coding(self) -> Coding:
        """Return the ids of symbols and labels."""
        raise NotImplementedError

    def decode_labels(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of the label that each id stands for, −1 where it is none."""
        raise NotImplementedError

    def columns(self, split: Sequence[Example]) -> PositionColumns:
        coding = self.coding()
        if isinstance(split, PositionRows) and split.is_endless:
            sample = split.arrays(np.arange(SAMPLE) * (STRETCH // SAMPLE))
            return PositionColumns(
                split.arrays, coding, sample.lengths, is_endless=True, loops_of=split.loops
            )
        if isinstance(split, PositionRows):
            made = split.arrays(np.arange(len(split)))
        else:
            made = self.task.numbers(split)
        # Kept as short as it can be: a fixed set of a million rows is seen again and again.
        source, target = made.source.astype(np.int16), made.target.astype(np.int16)
        loops = split.loops if isinstance(split, PositionRows) else None
        return PositionColumns(
            lambda rows: Rows(source[rows], target[rows]), coding, made.lengths, loops_of=loops
        )

    def label(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        device: torch.device,
        batch_size: int,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
        call_of: Callable[[Batch, np.ndarray], Any] | None = None,
    ) -> Answers:
        """Return the most likely label at each scored position of some rows, in the rows' order.

        Args:
            model: in evaluation mode, on ``device``; called as in training.
            examples: the rows; batches are of rows of similar length.
            device: where the model is.
            batch_size: rows of a batch.
            on_batch: called before each batch with the rows done and their number; may raise to
                stop.
            call_of: what calls the model for a batch and its rows, where that differs by batch.
        """
        columns = self.columns(examples)
        predictions: list[Prediction] = [Prediction(())] * len(examples)
        order = np.argsort(columns.lengths, kind="stable")
        for first in range(0, len(order), batch_size):
            on_batch(first, len(order))
            rows = order[first : first + batch_size]
            batch = columns.batch(rows, device=device)
            answers = self.answers(model if call_of is None else call_of(batch, rows), batch)
            for row, answer in zip(rows.tolist(), answers, strict=True):
                predictions[row] = Prediction(answer)
        return Answers(examples, predictions)

    def answers(self, model: Any, batch: Batch) -> list[tuple[str, ...]]:
        """Return the most likely label at each scored position of a batch, ``UNSCORED`` elsewhere.

        Args:
            model: called as in training.
            batch: from ``columns``.
        """
        logits = self.forward(model, batch).logits
        numbers = self.decode_labels(logits.argmax(dim=-1).cpu().numpy())  # (B, T + 1)
        # A word of the vocabulary that is no label is a wrong answer, and is shown as what it is.
        scored = batch.tensors[TARGETS].cpu().numpy() != IGNORE
        numbers = np.where(scored, numbers, len(self.labels))
        words = (*self.labels, UNSCORED, UNKNOWN)
        ends = batch.tensors["tokens_mask"].sum(dim=1).tolist()
        return [
            tuple(words[number] for number in row[1:end])
            for row, end in zip(numbers.tolist(), ends, strict=True)
        ]


class LabellerObjective(PositionObjective):
    """Reads ``BOS x`` with an encoder; every token sees all others."""

    form = "encoder_labeller"

    def sizes(self) -> dict[str, int]:
        return {
            "vocabulary_size": len(self.task.vocabularies()[0]),
            "num_classes": len(self.labels),
        }

    def words(self) -> tuple[Sequence[str], Sequence[str] | None]:
        return self.task.vocabularies()[0].tokens, None

    def longest(self) -> dict[str, int]:
        return {"encoder": self.task.max_source_length() + 1}

    def coding(self) -> Coding:
        source = self.task.vocabularies()[0]
        return Coding(
            np.array([*source.encode(self.task.symbols()), source.pad]),
            np.array([*range(len(self.labels)), IGNORE]),
        )

    def decode_labels(self, ids: np.ndarray) -> np.ndarray:
        return ids

    def forward(self, model: Any, batch: Batch) -> Any:
        return model(batch.tensors["tokens"], source_mask=batch.tensors["tokens_mask"])


class CausalObjective(PositionObjective):
    """Reads ``BOS x`` with one causal stack; symbols and labels share one vocabulary."""

    form = "decoder_lm"

    def __init__(self, task: PositionTask) -> None:
        super().__init__(task)
        source, target = task.vocabularies()
        self.vocabulary = Vocabulary((*source.tokens, *target.tokens))

    def sizes(self) -> dict[str, int]:
        return {"vocabulary_size": len(self.vocabulary)}

    def words(self) -> tuple[Sequence[str], Sequence[str] | None]:
        return self.vocabulary.tokens, None

    def longest(self) -> dict[str, int]:
        return {"decoder": self.task.max_source_length() + 1}

    def coding(self) -> Coding:
        encode = self.vocabulary.encode
        return Coding(
            np.array([*encode(self.task.symbols()), self.vocabulary.pad]),
            np.array([*encode(self.labels), IGNORE]),
        )

    def decode_labels(self, ids: np.ndarray) -> np.ndarray:
        numbers = np.full(len(self.vocabulary), -1)
        numbers[self.vocabulary.encode(self.labels)] = np.arange(len(self.labels))
        return numbers[ids]

    def forward(self, model: Any, batch: Batch) -> Any:
        return model(batch.tensors["tokens"], padding_mask=batch.tensors["tokens_mask"])


POSITION_OBJECTIVES: dict[str, dict[str, type[Objective]]] = {
    "position_labelling": {
        "encoder_labeller": LabellerObjective,
        "decoder_lm": CausalObjective,
    },
    "causal_labelling": {"decoder_lm": CausalObjective},
}
"""Objectives by the task's kind and the model's form, beside ``OBJECTIVES`` of the others."""
