"""What a block reads of the tokens beside a token: convolutions over positions.

Shapes: B rows, T tokens, K columns, N channels, k taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moeut.blocks.positions.base import TokenStore


class TokenRow(NamedTuple):
    """Who stands beside whom in the rows of a pass."""

    columns: Tensor
    """(T,) or (B, T) column of each token in its row."""

    real: Tensor | None = None
    """(B, T) True at tokens that are no padding, whether they take part or not; None: all are."""

    document_numbers: Tensor | None = None
    """(B, T) tokens have neighbours in their own document alone."""

    store: TokenStore | None = None
    """What holds the earlier tokens of the rows, where they are not read again."""


def taps(x: Tensor, offsets: Sequence[int], row: TokenRow | None, name: str) -> Tensor:
    """Return x (B, T, N) of the tokens at ``offsets`` from each token, in order: (B, T, N, k).

    Beyond the ends of a row, at padding, and in another document there is 0. With a store, which
    keeps x under ``name``, no offset may be above 0.
    """
    if row is not None and row.store is not None:
        return _stored_taps(x, offsets, row, row.store, name)
    if row is not None and row.real is not None:
        x = x.masked_fill(~row.real.unsqueeze(-1), 0.0)
    length = x.shape[1]
    before, behind = max(0, -min(offsets)), max(0, *offsets)
    padded = F.pad(x, (0, 0, before, behind))
    found = [padded[:, before + offset : before + offset + length] for offset in offsets]
    if row is not None and row.document_numbers is not None:
        numbers = row.document_numbers
        around = F.pad(numbers, (before, behind), value=-1)
        for i, offset in enumerate(offsets):
            same = around[:, before + offset : before + offset + length] == numbers
            found[i] = found[i] * same.unsqueeze(-1)
    return torch.stack(found, dim=-1)


def _stored_taps(
    x: Tensor, offsets: Sequence[int], row: TokenRow, store: TokenStore, name: str
) -> Tensor:
    assert max(offsets) <= 0, "a later token is not there yet"
    whole = store.append(name, x)  # (B, K, N)
    columns = row.columns.expand(x.shape[:2]).unsqueeze(-1)
    columns = columns + torch.tensor(offsets, device=x.device)  # (B, T, k)
    rows = torch.arange(x.shape[0], device=x.device)[:, None, None]
    found = whole[rows, columns.clamp(min=0)]  # (B, T, k, N)
    return found.masked_fill((columns < 0).unsqueeze(-1), 0.0).transpose(-1, -2)
