"""Scoring a language model on a split of text: cross entropy over its windows.

Losses are summed by position in the window, in float64. The sums of parts of a split add up to the
sum over the whole, however it is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from moeut.config import ModelConfig
from runners.process.ranks import World
from runners.training.batches import Columns
from runners.training.objective import Objective
from tasks.base.metrics import TextLoss, measure
from tasks.base.scoring import Scores, Table

LOGITS_AT_ONCE = {"cpu": 2**24, "cuda": 2**27}
"""Most logits of a batch: with their logarithms and a copy, 200 MB on a CPU, 1.6 GB on a GPU."""


def choose_windows(count: int, limit: int | None) -> np.ndarray:
    """Return (n,): the numbers of up to ``limit`` of ``count`` windows, evenly spread, in order."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def windows_at_once(config: ModelConfig, context_length: int, device: torch.device) -> int:
    """Return how many windows are read in one batch: as many as their logits have room for."""
    return max(1, LOGITS_AT_ONCE[device.type] // (config.vocabulary_size * context_length))


def loss_by_position(
    model: Callable[..., Any],
    objective: Objective,
    columns: Columns,
    rows: np.ndarray,
    *,
    at_once: int,
    device: torch.device,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    world: World = World(),  # noqa: B008 - frozen
) -> torch.Tensor:
    """Return (context_length,) float64: the cross entropy in nats, summed over ``rows``.

    Several ranks read a share of each batch and get the sum over all of them.

    Args:
        model: a ``DecoderLM`` in evaluation mode, or a call to it with its depth filled in.
        objective: that of the task.
        columns: the split's windows.
        rows: which of them are read, ``at_once`` in each batch.
        at_once: windows of a batch.
        device: where the model is.
        on_batch: called before each batch with the rows done and their number, as often on every
            rank; may raise to stop.
        world: this process's place among the ranks that score.
    """
    length = int(columns.shape[0, 0])
    sums = torch.zeros(length, dtype=torch.float64, device=device)
    for first in range(0, len(rows), at_once * world.size):
        on_batch(first, len(rows))
        (share,) = world.pieces(rows[first : first + at_once * world.size], 1)
        if not len(share):
            continue
        batch = columns.batch(share, device=device)
        logits = objective.forward(model, batch).logits
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), batch.tensors["targets"].flatten(), reduction="none"
        )
        # (B, C) → (C,), added on the device: reading it here would wait for the GPU.
        sums = sums + losses.view(logits.shape[:2]).double().sum(dim=0)
    return world.sum(sums)


def score_windows(losses: torch.Tensor, num_windows: int, split: Any) -> Scores:
    """Return the scores of a split from what ``loss_by_position`` gave for some of its windows.

    The table by difficulty is by position in the window, where 1 is the token after the first. Its
    rows are buckets that end at 1, 2, 4, 8, … and at the window's length.

    Args:
        losses: (C,) summed cross entropy in nats.
        num_windows: windows that the sums are over.
        split: says how many tokens and bytes the whole split has.
    """
    sums = losses.tolist()

    def metrics(total: float, count: int) -> dict[str, float]:
        text = TextLoss(total / count, split.num_tokens, split.num_bytes)
        return measure("language_modelling", text)

    by_position: Table = {}
    first = 0
    while first < len(sums):
        end = min(max(1, 2 * first), len(sums))
        count = (end - first) * num_windows
        by_position[str(end)] = metrics(sum(sums[first:end]), count) | {"rows": count}
        first = end
    return Scores(
        metrics=metrics(sum(sums), len(sums) * num_windows),
        rows=num_windows,
        by_difficulty=by_position,
    )
