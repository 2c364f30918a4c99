"""Which repeat to read, where nobody says: the one that is surest of its own answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def uncertainty(logits: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy (B,) of logits (B, …, V) with their own most likely answers.

    ``counted`` (B, …) bool: the predictions that count; all if left out (arXiv 2409.15647).
    """
    flat = logits.reshape(len(logits), -1, logits.shape[-1])
    each = F.cross_entropy(flat.transpose(1, 2), flat.argmax(dim=-1), reduction="none")  # (B, T)
    if counted is None:
        return each.mean(dim=1)
    known = counted.reshape(each.shape)
    return (each * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)


def surest(logits: Sequence[Tensor], counted: Tensor | None = None) -> Tensor:
    """Return the number (B,) of the repeat whose logits (B, …, V) are surest of each row."""
    return torch.stack([uncertainty(one, counted) for one in logits]).argmin(dim=0)
