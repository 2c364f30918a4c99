"""Logit lens: what final norm and head say of the state after every application."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from runners.analysis.figures import curves
from runners.analysis.findings import Finding, Row
from runners.analysis.traces import Traces, predictions
from runners.training.batches import IGNORE

EVERY = "all"


@torch.inference_mode()
def logit_lens(traces: Traces) -> list[Finding]:
    """Return accuracy, cross entropy in nats and agreement with the last state, by application.

    They are means over scored predictions, of all rows and of those of each difficulty.
    """
    sums: dict[tuple[int, str], list[float]] = {}
    for each in traces.batches:
        targets = each.targets
        final = None
        for number in reversed(range(len(each.states))):
            logits = traces.model.lens(each.states[number], each.real).float()
            if logits.shape[1:-1] != targets.shape[1:]:  # prefix rows of a labeller are left out
                logits = logits[:, -targets.shape[1] :]
            answers, wanted, rows = predictions(logits, targets)
            final = answers if final is None else final
            losses = F.cross_entropy(logits[targets != IGNORE], wanted, reduction="none")
            columns = zip(
                (answers == wanted).tolist(),
                losses.tolist(),
                (answers == final).tolist(),
                rows.tolist(),
                strict=True,
            )
            for right, loss, agrees, row in columns:
                for group in (EVERY, _difficulty(each.examples, row)):
                    found = sums.setdefault((number, group), [0.0, 0.0, 0.0, 0.0])
                    for index, value in enumerate((right, loss, agrees, 1)):
                        found[index] += value
    rows_found: list[Row] = [
        {
            **traces.where(number),
            "difficulty": group,
            "accuracy": right / count,
            "cross_entropy": loss / count,
            "agreement_with_last": agrees / count,
            "predictions": int(count),
        }
        for (number, group), (right, loss, agrees, count) in sorted(
            sums.items(), key=lambda item: (item[0][1] != EVERY, _natural(item[0][1]), item[0][0])
        )
        if group
    ]
    return [
        Finding(
            name="lens",
            title="Logit lens: the head on the state after every application",
            rows=rows_found,
            limits="The head was trained on the last state alone: a low accuracy before does not "
            "mean that the answer is not in the state, only that it is not where the head looks "
            "(linear probes look elsewhere). A coda is passed over.",
            draw=curves(
                "application",
                ["accuracy", "cross_entropy", "agreement_with_last"],
                group=["difficulty"],
            ),
        )
    ]


def _difficulty(examples: object, row: int) -> str:
    """Return the difficulty of a row, or nothing where rows have none."""
    if not isinstance(examples, list) or examples[row].difficulty is None:
        return ""
    return f"{examples[row].difficulty:g}"


def _natural(text: str) -> float:
    return float(text) if text not in ("", EVERY) else -1.0
