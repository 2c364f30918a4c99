"""Deep supervision: losses of one pass of a model that carries its state from pass to pass.

As in HRM, TRM and URM. Every pass is trained to give the whole answer, and to know whether it is
right: with a the logits of halting and of going on,

    loss of a row = mean of its targets' cross entropies + ½ (BCE(a₀, all right) + BCE(a₁, target))

The second of the two in parentheses is HRM's alone: its target is what a further pass says of the
row, the larger of its two logits, or at the last pass the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runners.training.batches import IGNORE

TINY = 1e-30


@dataclass(frozen=True)
class Rules:
    """What halts a row, and what is learned of it."""

    most: int
    """Passes after which every row halts."""
    loss: str = "stablemax"
    """``stablemax`` or ``softmax``."""
    learns_continue: bool = False
    """Whether going on has a value of its own, and a row halts when halting has the larger one
    (HRM); otherwise it halts when halting is more likely than not (TRM, URM)."""


class Losses(NamedTuple):
    """Losses of each row, (B,) each."""

    answer: Tensor
    """Mean cross entropy of its targets, in nats."""
    halting: Tensor
    """Weighted losses of the two logits."""
    is_right: Tensor
    """(B,) bool: all targets are the most likely ones."""


def row_losses(
    logits: Tensor,
    halting: Tensor,
    targets: Tensor,
    *,
    rules: Rules,
    next_value: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Losses:
    """Return the losses of a pass.

    Args:
        logits: (B, …, V).
        halting: (B, 2) logits of halting and of going on.
        targets: (B, …), those that are ``IGNORE`` left out.
        rules: which losses.
        next_value: (B,) what going on is worth, between 0 and 1, where that is learned.
        label_smoothing: share of a target's probability that is spread over all.
    """
    flat, targets = logits.flatten(1, -2) if logits.dim() > 2 else logits.unsqueeze(1), targets
    targets = targets.reshape(len(targets), -1)  # (B, T), beside (B, T, V)
    counted = targets != IGNORE
    if rules.loss == "stablemax":
        each = stablemax_cross_entropy(flat, targets)
    else:
        each = F.cross_entropy(
            flat.flatten(0, 1).to(torch.promote_types(flat.dtype, torch.float32)),
            targets.flatten(),
            ignore_index=IGNORE,
            label_smoothing=label_smoothing,
            reduction="none",
        ).view_as(targets)
    answer = each.sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    is_right = ((flat.argmax(dim=-1) == targets) | ~counted).all(dim=1)
    known = halting if halting.dtype == torch.float64 else halting.float()
    loss = _binary(known[:, 0], is_right.to(known.dtype))
    if next_value is not None:
        loss = loss + _binary(known[:, 1], next_value)
    return Losses(answer, 0.5 * loss, is_right)


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log(s(a_y) / Σ s(a)) of each target, 0 where it is ``IGNORE``, in float64.

    s(a) = a + 1 from 0 on, 1 / (1 - a) below (arXiv 2501.04697). Logits are (…, V), targets (…).
    """
    exact = logits.to(torch.float64)
    # Where the branch below 0 is not taken it must be finite at 1, or its gradient is 0 · infinity.
    below = 1.0 / (1.0 - exact.clamp(max=0.0) + TINY)
    size = torch.where(exact < 0.0, below, exact + 1.0)
    logarithms = (size / size.sum(dim=-1, keepdim=True)).log()
    counted = targets != IGNORE
    chosen = targets.where(counted, torch.zeros_like(targets)).unsqueeze(-1)
    picked = logarithms.gather(-1, chosen).squeeze(-1)
    return -picked.where(counted, torch.zeros_like(picked))


def halts(halting: Tensor, steps: Tensor, least: Tensor, *, rules: Rules) -> Tensor:
    """Return which rows halt after a pass, (B,) bool.

    Args:
        halting: (B, 2) logits of halting and of going on.
        steps: (B,) passes that each row has had, this one among them.
        least: (B,) passes that a row has to have, for exploration.
        rules: when a row halts.
    """
    other = halting[:, 1] if rules.learns_continue else torch.zeros_like(halting[:, 0])
    return ((steps >= rules.most) | (halting[:, 0] > other)) & (steps >= least)


def value_of_going_on(halting: Tensor, steps: Tensor, *, rules: Rules) -> Tensor:
    """Return what the logits (B, 2) of a further pass say that going on is worth, (B,).

    ``steps`` (B,) are the passes before that one: at the last of them a row would have to halt.
    """
    best = torch.where(steps >= rules.most, halting[:, 0], halting.amax(dim=1))
    return best.sigmoid()
