"""Attention masks, built once per forward pass and shared by all its layers.

Boolean masks are True where something is real or may be attended to. Shapes: B rows, T queries,
K keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeut.ops import backend


def check_mask(mask: Tensor | None, tokens: Tensor, name: str) -> Tensor | None:
    """Return ``mask`` if it says anything, None if every position is real.

    Raises ValueError unless it is boolean and shaped like ``tokens``, (B, T). Whether all
    positions are real is looked at on the CPU only, where that waits for nothing.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}.dtype={mask.dtype}: expected torch.bool, True at real tokens")
    if mask.shape != tokens.shape:
        raise ValueError(
            f"{name}.shape={tuple(mask.shape)}: expected that of the tokens, {tuple(tokens.shape)}"
        )
    return None if backend.can_look(mask) and bool(mask.all()) else mask


def check_right_padded(mask: Tensor | None, name: str) -> None:
    """Raise ValueError if a row has padding before a real token.

    A causal model relies on it: real tokens then never see padding, without any mask. The values
    are looked at on the CPU only.
    """
    if mask is not None and backend.can_look(mask) and bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(f"{name}: padding stands before a real token; pad on the right")


def check_prefix(prefix_length: Tensor | None, mask: Tensor | None, tokens: Tensor) -> None:
    """Raise ValueError unless ``prefix_length`` is (B,) and no prefix reaches into padding.

    The values are looked at on the CPU only.
    """
    if prefix_length is None:
        return
    if prefix_length.shape != tokens.shape[:1] or prefix_length.dtype.is_floating_point:
        raise ValueError(
            f"prefix_length: expected whole numbers of shape ({tokens.shape[0]},), got "
            f"{prefix_length.dtype} of shape {tuple(prefix_length.shape)}"
        )
    if backend.can_look(prefix_length):
        lengths = tokens.shape[1] if mask is None else mask.sum(dim=1)
        if bool((prefix_length > lengths).any()):
            raise ValueError("prefix_length: a prefix is longer than its row")


def check_documents(document_numbers: Tensor | None, tokens: Tensor) -> None:
    """Raise ValueError unless ``document_numbers`` are shaped like ``tokens`` and never fall.

    The values are looked at on the CPU only.
    """
    if document_numbers is None:
        return
    if document_numbers.shape != tokens.shape or document_numbers.dtype.is_floating_point:
        raise ValueError(
            f"document_numbers: expected whole numbers of shape {tuple(tokens.shape)}, got "
            f"{document_numbers.dtype} of shape {tuple(document_numbers.shape)}"
        )
    falls = document_numbers[:, 1:] < document_numbers[:, :-1]
    if backend.can_look(document_numbers) and bool(falls.any()):
        raise ValueError("document_numbers: must not fall along a row")


def same_document(document_numbers: Tensor) -> Tensor:  # (B, 1, T, T)
    """Let queries see the keys of their own document (B, T)."""
    return (document_numbers.unsqueeze(2) == document_numbers.unsqueeze(1)).unsqueeze(1)


def positions_in_documents(document_numbers: Tensor) -> Tensor:  # (B, T)
    """Return each token's position, counted from 0 at the first token of its document."""
    columns = torch.arange(document_numbers.shape[1], device=document_numbers.device)
    begins = torch.ones_like(document_numbers, dtype=torch.bool)
    begins[:, 1:] = document_numbers[:, 1:] != document_numbers[:, :-1]
    return columns - (columns * begins).cummax(dim=1).values


def causal(
    positions: Tensor, num_keys: int, prefix_length: Tensor | None = None
) -> Tensor:  # (1 or B, 1, T, K)
    """Let queries at ``positions`` (T,) or (B, T) see keys up to their own column.

    ``prefix_length`` (B,): keys of the prefix are seen by every query, so that the prefix is
    bidirectional.
    """
    keys = torch.arange(num_keys, device=positions.device)
    allowed = keys <= positions.unsqueeze(-1)
    if allowed.dim() == 2:
        allowed = allowed.unsqueeze(0)
    if prefix_length is not None:
        allowed = allowed | (keys < prefix_length.view(-1, 1, 1))
    return allowed.unsqueeze(1)


def real_keys(mask: Tensor) -> Tensor:  # (B, 1, 1, K)
    """Let every query see the real keys of ``mask`` (B, K).

    A row without a real position sees everything instead of nothing: what it computes is not
    used, but a softmax over nothing would be NaN, and NaN spreads through gradients.
    """
    return (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]


def additive(allowed: Tensor | None, like: Tensor) -> Tensor | None:
    """Return 0 where attention is allowed and -inf elsewhere, in the dtype attention runs in."""
    if allowed is None:
        return None
    zeros = torch.zeros(allowed.shape, dtype=backend.compute_dtype(like), device=like.device)
    return zeros.masked_fill_(~allowed, float("-inf"))
