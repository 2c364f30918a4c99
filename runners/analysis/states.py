"""How the state moves from application to application."""

from __future__ import annotations

import torch

from runners.analysis.figures import curves
from runners.analysis.findings import Finding, Row
from runners.analysis.traces import Traces

MEASURES = ("norm", "change", "relative_change", "cosine_with_previous", "distance_to_last")


def state_change(traces: Traces) -> list[Finding]:
    """Return how far each application moves the state, in means over real tokens.

    ``norm`` ‖x‖, ``change`` ‖x − p‖ with p the state before, ``relative_change`` ‖x − p‖ / ‖p‖,
    ``cosine_with_previous`` of x and p, and ``distance_to_last`` ‖x − l‖ / ‖l‖ with l the state
    after the last application. The embedded input (application 0) has no state before it.
    """
    count = len(traces.places) + 1
    sums = torch.zeros(count, len(MEASURES), dtype=torch.float64)
    tokens = 0
    for each in traces.batches:
        states = [state[each.real].double().cpu() for state in each.states]  # (N, D) each
        tokens += len(states[0])
        last = states[-1]
        for number, x in enumerate(states):
            before = states[max(number - 1, 0)]
            change = (x - before).norm(dim=-1)
            values = (
                x.norm(dim=-1),
                change,
                change / before.norm(dim=-1).clamp_min(1e-12),
                torch.cosine_similarity(x, before, dim=-1),
                (x - last).norm(dim=-1) / last.norm(dim=-1).clamp_min(1e-12),
            )
            sums[number] += torch.stack([value.sum() for value in values])
    means = (sums / tokens).tolist()
    rows: list[Row] = []
    for number, values in enumerate(means):
        named = dict(zip(MEASURES, values, strict=True))
        if number == 0:
            named |= dict.fromkeys(("change", "relative_change", "cosine_with_previous"))
        rows.append({**traces.where(number), **named, "tokens": tokens})
    return [
        Finding(
            name="states",
            title="The state after every application, means over real tokens",
            rows=rows,
            limits="A state that hardly moves may still turn in the few directions that the head "
            "reads, and norms of a pre-norm model grow whatever it computes; means over tokens "
            "hide the few that still move.",
            draw=curves("application", MEASURES),
        )
    ]
