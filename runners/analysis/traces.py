"""Traces of a model on rows of a split: every state, every decision, who was right."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeut.base import Model
from moeut.blocks.routing import RoutingRecord
from moeut.decoding import evaluation_mode
from moeut.output import ModelOutput
from moeut.recurrence.schedule import Place
from moeut.recurrence.stack import DepthStack
from runners.analysis.findings import NotThere
from runners.training.batches import IGNORE, TARGETS, Batch
from runners.training.objective import Objective
from tasks.base.task import Example

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class BatchTrace:
    """What a pass over some rows (B) left behind in the last stack."""

    batch: Batch
    output: ModelOutput
    states: list[Tensor]
    """(B, T, D) each: the embedded input, then the state after each application."""
    records: list[RoutingRecord | None]
    """Of each application; None where the pass had ended before it."""
    attention: list[dict[str, Tensor]]
    """Of each application: (B, H, T, K) weights by name; empty where it did not run."""
    tokens: Tensor
    """(B, T) ids that the stack reads, -1 in prefix rows."""
    real: Tensor
    """(B, T) True at real tokens."""
    examples: list[Example] | None
    """The rows; None for tasks whose rows are no examples."""

    @property
    def targets(self) -> Tensor:
        """(B,) classes or (B, T) labels, ``IGNORE`` where nothing is scored."""
        return self.batch.tensors[TARGETS]


@dataclass(frozen=True)
class Traces:
    """A model, and what it did with the rows of a split."""

    model: Any
    objective: Objective
    stack_name: str
    places: list[Place]
    """Of each application of the last stack."""
    batches: list[BatchTrace]
    num_repeats: Any = None

    @property
    def stack(self) -> DepthStack:
        """The stack that was traced: a decoder, where there are two."""
        return getattr(self.model, self.stack_name)

    def word(self, token: int) -> str:
        """Return the word of a token's id, or the id itself of text."""
        words = self.objective.words()[0]
        return words[token] if 0 <= token < len(words) else str(token)

    def where(self, state: int) -> dict[str, Any]:
        """Return the columns that say which state a row is of; 0 is the embedded input."""
        if state == 0:
            return {"application": 0, "repeat": "", "layer": ""}
        place = self.places[state - 1]
        repeat = "" if place.repeat is None else place.repeat + 1
        return {"application": state, "repeat": repeat, "layer": place.layer}


def trace(
    model: Any,
    objective: Objective,
    split: Any,
    *,
    rows: int,
    num_repeats: Any = None,
    device: torch.device | None = None,
) -> Traces:
    """Run a model over ``rows`` evenly spread rows of a split and keep all of it.

    Args:
        model: what ``moeut.build`` returns; it runs in evaluation mode and stays as it was.
        objective: how rows are read.
        split: of the task.
        rows: at most so many.
        num_repeats: depth as the model takes it; None: its own.
        device: where the model is; None: the CPU.

    Raises:
        NotThere: the model recurs in latent states, which have no schedule of layers.
    """
    name = "decoder" if hasattr(model, "decoder") else "encoder"
    stack: DepthStack = getattr(model, name)
    if stack.options.is_recursive:
        raise NotThere(f"{name}: recursion of latent states has no schedule of applications")
    own = num_repeats[1] if isinstance(num_repeats, tuple) else num_repeats
    places = stack.options.places(stack.resolve_repeats(own))
    columns = objective.columns(split)
    numbers = np.unique(np.linspace(0, len(columns) - 1, min(rows, len(columns))).astype(int))
    lengths = columns.shape[numbers].sum(axis=1)
    numbers = numbers[np.argsort(lengths, kind="stable")]
    batches = []
    for part in np.array_split(numbers, -(-len(numbers) // ROWS_AT_ONCE)):
        batch = columns.batch(part, device=device or torch.device("cpu"))
        output = run(model, objective, batch, num_repeats)
        kept = split[0] if len(split) and isinstance(split, Sequence) else None
        examples = [split[int(n)] for n in part] if isinstance(kept, Example) else None
        batches.append(_batch_trace(model, name, places, batch, output, examples))
    return Traces(model, objective, name, places, batches, num_repeats)


def run(model: Any, objective: Objective, batch: Batch, num_repeats: Any) -> ModelOutput:
    """Return what a traced pass over a batch gives."""
    options = {} if num_repeats is None else {"num_repeats": num_repeats}
    with evaluation_mode(model), torch.inference_mode():
        return objective.forward(functools.partial(model, trace=True, **options), batch)


def _batch_trace(
    model: Model,
    name: str,
    places: list[Place],
    batch: Batch,
    output: ModelOutput,
    examples: list[Example] | None,
) -> BatchTrace:
    assert output.hidden is not None
    assert output.trace is not None
    key = next(key for key in ("target", "tokens", "source") if key in batch.tensors)
    tokens = batch.tensors[key]
    real = batch.tensors.get(f"{key}_mask", torch.ones_like(tokens, dtype=torch.bool))
    extra = output.hidden[name][0].shape[1] - tokens.shape[1]  # prefix rows of a classifier
    tokens = torch.nn.functional.pad(tokens, (extra, 0), value=-1)
    real = torch.nn.functional.pad(real, (extra, 0), value=False)
    states: list[Tensor] = list(output.hidden[name])
    found: list[RoutingRecord | None] = list(output.trace[name])
    missing = len(places) - len(found)
    if missing:  # all tokens had halted: the state stays until the coda
        end = _last_repeated(places) + 1 - missing
        states[end + 1 : end + 1] = [states[end]] * missing
        found[end:end] = [None] * missing
    attention = [{} if each is None else each.attention_weights for each in found]
    return BatchTrace(batch, output, states, found, attention, tokens, real, examples)


def _last_repeated(places: list[Place]) -> int:
    return max(number for number, place in enumerate(places) if place.repeat is not None)


def predictions(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N,) each: answers, targets and the row of each scored prediction.

    Args:
        logits: (B, V), or (B, T, V).
        targets: (B,), or (B, T) with ``IGNORE`` where nothing is scored.
    """
    scored = targets != IGNORE
    rows = torch.arange(len(targets), device=targets.device)
    rows = rows.view(-1, *[1] * (targets.dim() - 1)).expand_as(targets)
    return logits.argmax(dim=-1)[scored], targets[scored], rows[scored]
