"""The causal check: what the answer follows where one state is another example's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runners.analysis.figures import maps
from runners.analysis.findings import Finding, NotThere, Row
from runners.analysis.traces import BatchTrace, Traces, run
from runners.training.batches import IGNORE

MOST_COLUMNS = 12


def swapped_states(traces: Traces) -> list[Finding]:
    """Return whose answer the model gives after a state at one column and depth was replaced.

    Each row is paired with another of equal length (the donor) to which the model answers
    something else. What one application gives at one column, counted from the row's end, becomes
    what it gave there for the donor, and all that follows runs on. Counted are the scored
    predictions in which the two answers differ: does the new one follow the row's own, the
    donor's, or neither? (Interchange intervention, Geiger et al., arXiv 2106.02997.)

    Raises:
        NotThere: no two rows of equal length have different answers.
    """
    counts: dict[tuple[int, int], np.ndarray] = {}
    longest = max(int(each.real.sum(dim=1).max()) for each in traces.batches)
    columns = sorted({round(n) for n in np.linspace(0, longest - 1, min(longest, MOST_COLUMNS))})
    for each in traces.batches:
        own = _answers(each.output.logits, each.targets)
        donors = _donors(each, own)
        if not (donors >= 0).any():
            continue
        for number in range(1, len(each.states)):
            for from_end in columns:
                found = _count(traces, each, own, donors, number, from_end)
                counts[number, from_end] = counts.get((number, from_end), 0) + found
    rows: list[Row] = [
        {
            **traces.where(number),
            "from_end": from_end,
            "follows_own": float(own / total),
            "follows_donor": float(donor / total),
            "neither": float((total - own - donor) / total),
            "predictions": int(total),
        }
        for (number, from_end), (own, donor, total) in sorted(counts.items())
        if total
    ]
    if not rows:
        raise NotThere("no two rows of equal length have different answers")
    return [
        Finding(
            name="swap",
            title="Predictions that follow the donor of the state at one column and depth",
            rows=rows,
            limits="One column at a time: what is held at several columns at once shows as "
            "following neither or the row's own. A mixed state is one that the model never made; "
            "columns are counted from the end of the row, 0 is its last token.",
            draw=maps(
                "from_end",
                "application",
                "follows_donor",
                group=[],
                beside=["follows_own", "neither"],
            ),
        )
    ]


def _answers(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B, P): the answers at each place, -1 where nothing is scored."""
    answers = logits.argmax(dim=-1).masked_fill(targets == IGNORE, -1)
    return answers if answers.dim() == 2 else answers.unsqueeze(1)


def _donors(each: BatchTrace, own: Tensor) -> Tensor:
    """Return (B,): the next row of equal length with other answers at the same places, or -1."""
    lengths = each.real.sum(dim=1)
    scored = own >= 0
    alike = (lengths[:, None] == lengths) & (scored[:, None] == scored).all(dim=-1)
    fits = alike & (own[:, None] != own).any(dim=-1)
    count = len(own)
    offsets = (torch.arange(count)[None] - torch.arange(count)[:, None]) % count  # (B, B)
    nearest = offsets.to(fits.device).masked_fill(~fits, count).min(dim=1)
    return torch.where(nearest.values < count, nearest.indices, -1)


def _count(
    traces: Traces, each: BatchTrace, own: Tensor, donors: Tensor, number: int, from_end: int
) -> np.ndarray:
    """Return how many predictions follow the row's own, the donor's, and all that are counted."""
    width = each.real.shape[1]
    last = (torch.arange(width, device=own.device) * each.real).amax(dim=1)
    column = last - from_end
    taken = (donors >= 0) & (from_end < each.real.sum(dim=1))
    if not taken.any():
        return np.zeros(3)
    rows = taken.nonzero().flatten()
    with replaced(traces, number, rows, column[rows], donors[rows]):
        output = run(traces.model, traces.objective, each.batch, traces.num_repeats)
    now = _answers(output.logits, each.targets)[rows]
    before, other = own[rows], own[donors[rows]]
    differ = (before != other) & (before >= 0)
    numbers = [(now == before) & differ, (now == other) & differ, differ]
    return np.array([int(counted.sum()) for counted in numbers])


@contextlib.contextmanager
def replaced(
    traces: Traces, application: int, rows: Tensor, columns: Tensor, donors: Tensor
) -> Iterator[None]:
    """Replace what an application gives for rows (N,) at columns (N,) by that of donors (N,).

    ``application`` counts from 1. The donors' states are those of the same pass, before the change.
    """
    seen = 0

    def hook(layer: Any, inputs: Any, output: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen != application:
            return None
        x = output.x.clone()
        x[rows, columns] = output.x[donors, columns]
        return output._replace(x=x)

    handles = [layer.register_forward_hook(hook) for layer in traces.stack.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
