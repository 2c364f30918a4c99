"""Choose experts by logits and sort what was chosen for the expert products, in one operation.

Shapes: B rows, T tokens, R routers that decide at once, H heads of each, E experts, k = top_k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moeut.blocks import routing
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import Dispatch, native


class Dispatched(NamedTuple):
    """A routing decision ready for the expert matmuls."""

    dispatch: Dispatch
    """The B·T·H·k slots, sorted by expert: slot s is [row, token, head, choice]."""

    gates: Tensor
    """(B, T, H, k)"""


Decision = tuple[Dispatched, RouterRecord | None]


def decide(
    logits: Tensor,
    top_k: int,
    context: RoutingContext,
    *,
    num_routers: int = 1,
    router: str = "sigmoid",
    drop: float = 0.0,
) -> list[Decision]:
    """Return the decisions of R routers on logits (B, T, R·H, E), each with its record.

    They are those of ``routing.route``. Experts are numbered within their head; head h's are rows
    h·E … of the weights, and so of the dispatch. Where the C++ operations serve, one of them does
    all of it, to the bit, and chooses among equal logits as ``torch.topk`` does.
    """
    heads, experts = logits.shape[2] // num_routers, logits.shape[3]
    if router == "sigmoid" and not context.trace and native.serves(logits, context.share):
        return _decide_at_once(logits, top_k, context, num_routers, drop)
    chosen, record = routing.route(logits, top_k, context, router=router, drop=drop)
    decisions = []
    split = [kept.split(heads, dim=2) for kept in (chosen.selection, chosen.gates)]
    for part, (selection, gates) in enumerate(zip(*split, strict=True)):
        rows = selection
        if heads > 1:
            first = torch.arange(heads, device=logits.device).mul_(experts).unsqueeze(-1)  # (H, 1)
            # Where no expert is chosen, -1 has to stay -1: with h·E added it would be the head
            # before's last.
            rows = torch.where(selection < 0, -1, selection + first)  # (B, T, H, k)
        dispatch = Dispatch.from_indices(rows, heads * experts)
        of_part = slice(part * heads, (part + 1) * heads)
        one = record if record is None or num_routers == 1 else record.select_heads(of_part)
        decisions.append((Dispatched(dispatch, gates), one))
    return decisions


def _decide_at_once(
    logits: Tensor, top_k: int, context: RoutingContext, num_routers: int, drop: float
) -> list[Decision]:
    """Decide as ``decide`` does, in C++."""
    dropped = torch.rand_like(logits) < drop if drop > 0.0 else None
    share = context.share if context.balance else None
    made = torch.ops.moeut_native.route(
        logits, dropped, context.real, share, top_k, num_routers, context.balance
    )
    kinds = [made[start : start + num_routers] for start in range(0, len(made), num_routers)]
    gates, *probabilities, rows, order, counts, offsets = kinds
    num_rows = logits.shape[2] // num_routers * logits.shape[3]
    decisions: list[Decision] = []
    for part in range(num_routers):
        dispatch = Dispatch(rows[part], order[part], counts[part], offsets[part], num_rows)
        of_part = probabilities[0][part] if probabilities else None
        record = RouterRecord(of_part, mass=context.mass) if context.balance else None
        decisions.append((Dispatched(dispatch, gates[part]), record))
    return decisions
