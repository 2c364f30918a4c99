"""Linear probes: which intermediate values can be read off the state, at which depth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runners.analysis.figures import curves
from runners.analysis.findings import Finding, NotThere, Row
from runners.analysis.traces import BatchTrace, Traces
from runners.training.batches import IGNORE
from tasks.base.task import ExampleTask, Intermediate

FEWEST_ROWS = 40


@dataclass
class _Readings:
    """What a value is in each row, and the states to read it off."""

    values: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    """(applications + 1, D) of each row."""


def linear_probes(traces: Traces) -> list[Finding]:
    """Return how well a linear classifier reads each intermediate value off each state.

    It is logistic regression on standardised states, fitted on one half of the rows and scored on
    the other; ``token`` reads where the value's last token stands, ``answer`` where the answer is
    read. The control task (Hewitt and Liang, arXiv 1909.03368) gives each key, of which the value
    is a function, one of the labels by chance: a probe that merely remembers keys does as well on
    it, so that ``selectivity``, the difference, is what the state says of the value itself.

    Raises:
        NotThere: the task gives no intermediate values, or too few rows have them.
    """
    readings = _collect(traces)
    rows = []
    for (name, place), found in readings.items():
        if len(found.values) >= FEWEST_ROWS and len(set(found.values)) > 1:
            rows += _probe(traces, name, place, found)
    if not rows:
        said = "the task gives no intermediate values" if not readings else "too few rows have any"
        raise NotThere(said)
    return [
        Finding(
            name="probes",
            title="Intermediate values that a linear probe reads off the state",
            rows=rows,
            limits="That a value can be read does not mean that the model uses it (the swap of "
            "states says that); what a probe does not find may be there in another form.",
            draw=curves("application", ["accuracy", "selectivity"], group=["value", "read_at"]),
        )
    ]


def _collect(traces: Traces) -> dict[tuple[str, str], _Readings]:
    task = traces.objective.task
    readings: dict[tuple[str, str], _Readings] = {}
    for each in traces.batches:
        if each.examples is None or not isinstance(task, ExampleTask):
            return {}
        states = torch.stack(each.states, dim=1).float().cpu()  # (B, applications + 1, T, D)
        answers = _answer_columns(traces, each)
        for row, example in enumerate(each.examples):
            first = int(each.real[row].to(torch.int8).argmax()) + 1  # after the begin
            for found in task.intermediate_values(example):
                columns = {"answer": int(answers[row])}
                if "target" not in each.batch.tensors:  # a decoder of two does not read the source
                    columns["token"] = first + found.token
                for place, column in columns.items():
                    _add(readings, found, place, states[row, :, column])
    return readings


def _add(
    readings: dict[tuple[str, str], _Readings], found: Intermediate, place: str, states: Tensor
) -> None:
    into = readings.setdefault((found.name, place), _Readings())
    into.values.append(found.value)
    into.keys.append(found.key)
    into.states.append(states)


def _answer_columns(traces: Traces, each: BatchTrace) -> Tensor:
    """Return (B,) the column that each row's answer, or its first token, is read off."""
    if each.targets.dim() == 2:
        extra = each.real.shape[1] - each.targets.shape[1]
        return (each.targets != IGNORE).to(torch.int8).argmax(dim=1) + extra
    real = each.real.to(torch.int8)
    if traces.model.config.pooling == "last":
        return (torch.arange(real.shape[1], device=real.device) * real).amax(dim=1)
    return real.argmax(dim=1)


def _probe(traces: Traces, name: str, place: str, found: _Readings) -> list[Row]:
    values = np.array(found.values)
    labels = sorted(set(found.values))
    control = np.array([control_label(key, name, labels) for key in found.keys])
    states = torch.stack(found.states, dim=1).numpy()  # (applications + 1, N, D)
    order = np.random.default_rng(0).permutation(len(values))
    fitted, scored = order[: len(order) // 2], order[len(order) // 2 :]
    majority = max(np.mean(values[scored] == label) for label in labels)
    rows: list[Row] = []
    for number, x in enumerate(states):
        accuracy = probe_accuracy(x, values, fitted, scored)
        on_control = probe_accuracy(x, control, fitted, scored)
        rows.append(
            {
                **traces.where(number),
                "value": name,
                "read_at": place,
                "accuracy": accuracy,
                "control_accuracy": on_control,
                "selectivity": accuracy - on_control,
                "majority": float(majority),
                "labels": len(labels),
                "rows": len(values),
            }
        )
    return rows


def control_label(key: str, name: str, labels: Sequence[str]) -> str:
    """Return the label that the control task gives a key: one by chance, always the same."""
    digest = hashlib.sha256(f"{name} {key}".encode()).digest()
    return labels[int.from_bytes(digest[:8], "big") % len(labels)]


def probe_accuracy(
    x: np.ndarray, values: np.ndarray, fitted: np.ndarray, scored: np.ndarray
) -> float:
    """Return the accuracy on the rows ``scored`` of a probe of x (N, D) fitted on ``fitted``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(values[fitted])) == 1:
        return float(np.mean(values[scored] == values[fitted][0]))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return float(probe.fit(x[fitted], values[fitted]).score(x[scored], values[scored]))
