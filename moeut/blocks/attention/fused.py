"""Attention in one operation in C++, for float32 on the CPUs of ``moeut.ops.native``.

Of short rows, logits, softmax and the mix of values of one row and head stay in cache, where
separate operations pass over memory seven times; the weights are kept for backward. Longer rows are
taken in blocks, whose weights are computed again. All else is left to PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moeut.blocks.positions import LogitPosition
from moeut.blocks.positions.base import RelativeTerms
from moeut.ops import native

MAX_CELLS = 2**16
"""Queries times keys up to which weights are kept for backward: 256 KiB a row and head."""

MIN_LONG_QUERIES = 16
"""Queries of a row from which on it is taken in blocks: for fewer, copying its keys costs more than
it saves."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    distances: Any,
    position: LogitPosition | None,
    dropout: float,
) -> Tensor | None:  # (B, H, T, d)
    """Return softmax(logits) @ value of queries (B, H, T, d), keys and values (B, H, K, d).

    ``bias``, ``is_causal`` and ``distances`` are those of an ``AttentionContext``; ``position``
    computes logits from distances. None where no operation serves.
    """
    if not serves_attention(query, key, value, bias):
        return None
    scale, relative = query.shape[-1] ** -0.5, None
    if is_long(query, key):
        if distances is not None or query.shape[-2] < MIN_LONG_QUERIES:
            return None
        about: Any = {"scale": scale, "bias": bias, "is_causal": is_causal, "dropout": dropout}
        return long_attention(query, key, value, **about)
    if distances is not None:
        assert position is not None
        terms = position.terms(query, distances)
        if terms is None:
            return None
        query, relative, scale = terms
    return short_attention(
        *(query, key, value),
        scale=scale,
        bias=bias,
        is_causal=is_causal,
        relative=relative,
        dropout=dropout,
    )


def serves_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> bool:
    """Return whether an operation computes on these: the machine, dtypes and the bias's shape fit.

    ``query`` (B, H, T, d), ``key`` and ``value`` (B, G, K, d), ``bias`` as in ``short_attention``.
    """
    if not query.numel() or not key.numel() or value.shape[-1] != key.shape[-1]:
        return False
    if bias is not None and (bias.requires_grad or bias.dim() != 4 or bias.shape[1] != 1):
        return False
    return native.serves(query, key, value, bias)


def is_long(query: Tensor, key: Tensor) -> bool:
    """Return whether queries (B, H, T, d) and keys (B, G, K, d) have more weights than are kept."""
    return query.shape[-2] * key.shape[-2] > MAX_CELLS


def short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    is_causal: bool = False,
    relative: RelativeTerms | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(scale · logits + bias) @ value, (B, H, T, d).

    ``query`` (B, H, T, d), ``key`` and ``value`` (B, G, K, d), where key head h // (H / G) serves
    head h; ``bias`` (1 or B, 1, 1 or T, K). ``is_causal``: query t sees keys 0 … t. The logits are
    q·k or, with ``relative``, (q + content)·k + (q + position)·table. ``dropout`` is the
    probability that a weight is dropped, by a seed that PyTorch's generator gives.
    """
    terms = relative or (None, None, None)
    return torch.ops.moeut_native.attention(
        query, key, value, bias, *terms, dropout, scale, is_causal and bias is None
    )


def long_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Return what ``short_attention`` does without ``relative``, and keep no weights for backward.

    The two differ by rounding, in what is dropped, and for a query that sees no key: here its
    result is 0, as that of PyTorch's fused attention is, there NaN. The algorithm is
    FlashAttention-2's (arXiv 2307.08691).
    """
    return torch.ops.moeut_native.long_attention(
        query, key, value, bias, dropout, scale, is_causal and bias is None
    )
