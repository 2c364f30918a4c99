"""Depths that are chosen row by row, where a label stands at each position (arXiv 2409.15647).

==============  ==========================================================================
way             a row is read after
==============  ==========================================================================
``confidence``  the repeat that is surest of its own answers, of all up to the most
``length``      as many repeats as it is long, as its task counts
==============  ==========================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from moeut.recurrence.confidence import surest
from moeut.recurrence.row_depth import RowDepth
from runners.training.batches import IGNORE, TARGETS, Batch
from tasks.base.metrics import Answers, headline_metric
from tasks.base.scoring import Table, correctness
from tasks.base.task import Example

NAME = "choice of repeats"
"""What the table of a split is called."""

Call = Callable[..., Any]
"""Calls a model as an objective does."""


def by_confidence(model: Call, most: int) -> Callable[[Batch, np.ndarray], Call]:
    """Return what calls the model for a batch, read after the surest of up to ``most`` repeats."""

    def of_batch(batch: Batch, rows: np.ndarray) -> Call:
        counted = batch.tensors[TARGETS] != IGNORE

        def call(*arguments: Any, **options: Any) -> Any:
            output = model(*arguments, num_repeats=most, read_repeats=range(most), **options)
            chosen = surest(output.repeat_logits, counted)  # (B,)
            every = torch.stack(output.repeat_logits)  # (R, B, T, V)
            each = torch.arange(len(chosen), device=chosen.device)
            return dataclasses.replace(output, logits=every[chosen, each])

        return call

    return of_batch


def by_length(model: Call, repeats: np.ndarray) -> Callable[[Batch, np.ndarray], Call]:
    """Return what calls the model for a batch of rows that have ``repeats`` (N,) each."""

    def of_batch(batch: Batch, rows: np.ndarray) -> Call:
        each = torch.from_numpy(repeats[rows]).to(batch.tensors[TARGETS].device)
        depth = RowDepth(torch.zeros_like(each), each)

        def call(*arguments: Any, **options: Any) -> Any:
            return model(*arguments, num_repeats=int(each.max()), row_depth=depth, **options)

        return call

    return of_batch


def repeats_of_lengths(task: Any, rows: Sequence[Example], most: int) -> np.ndarray:
    """Return the repeats (N,) of rows, at most ``most``; a row's difficulty is its length."""
    lengths = np.array([int(row.difficulty or 1) for row in rows], dtype=np.int64)
    return np.clip(task.loops(lengths), 1, most)


def table_of(kind: str, answers: dict[str, Answers]) -> Table:
    """Return the share of rows that are right by each way of choosing, in the order given."""
    metric, table = headline_metric(kind), {}
    for way, given in answers.items():
        right = correctness(kind, given.examples, given.predictions)
        table[way] = {metric: sum(right) / len(right), "rows": len(right)}
    return table
