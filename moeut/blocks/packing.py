"""Tokens that take part in an application, packed together, so that the others cost nothing.

Shapes: B rows, R of them with a token that takes part, T tokens of a row, M packed tokens of all
rows, N slots of a row, as many as the row with the most of them has; H heads, d head size, D model.

What maps each token by itself (norms, projections, experts, feed-forward) reads the packed tokens
as one row (1, M, D). Attention among tokens needs rows: queries are spread to (R, H, N, d), in the
order of their columns, and look at keys in their own columns (B, H, T, d) of the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where packed tokens are from, and the slots that they have in their rows."""

    tokens: Tensor
    """(M,) number of each packed token among all B·T, ascending."""

    slots: Tensor | None
    """(M,) its number among all R·N slots; None: they are all filled, in this order."""

    source: Tensor | None
    """(R·N,) number of the packed token in each slot, 0 in empty ones; None: as ``slots``."""

    filled: Tensor | None
    """(R, N) True at slots with a token; None: all have one."""

    shape: tuple[int, int, int]
    """(B, T, N)"""

    rows: Tensor | None = None
    """(R,) rows with a token that takes part; None: all of them."""

    is_alone: bool = False
    """Whether keys are spread like queries, since packed tokens see one another alone."""

    @classmethod
    def of(cls, active: Tensor, columns: Tensor | None, *, is_alone: bool) -> Packing | None:
        """Pack the ``active`` (B, T) tokens; None if all of them are active.

        ``columns`` (B, N), ascending, are where they stand, if that is known.
        """
        if columns is not None:
            packing = cls.of_columns(columns, active.shape[1])
        else:
            packing = cls.of_mask(active)
        if packing.tokens.shape[0] == active.numel():
            return None
        return replace(packing, is_alone=is_alone)

    @classmethod
    def of_mask(cls, active: Tensor) -> Packing:
        """Pack the ``active`` (B, T) tokens; how many there are is looked at."""
        batch, length = active.shape
        tokens = active.flatten().nonzero().squeeze(-1)
        counts = active.sum(dim=1)
        width = int(counts.max()) if batch else 0
        has_any, rows = counts > 0, None
        if not bool(has_any.all()):
            rows = has_any.nonzero().squeeze(-1)
            counts = counts.index_select(0, rows)
        shape = (batch, length, width)
        if tokens.shape[0] == counts.shape[0] * width:
            return cls(tokens, None, None, None, shape, rows)
        rank = active.cumsum(dim=1).flatten()[tokens] - 1
        number_of_row = has_any.cumsum(dim=0) - 1
        slots = number_of_row[tokens // length] * width + rank
        source = torch.zeros(counts.shape[0] * width, dtype=torch.int64, device=active.device)
        source[slots] = torch.arange(tokens.shape[0], device=active.device)
        filled = torch.arange(width, device=active.device) < counts.unsqueeze(1)
        return cls(tokens, slots, source, filled, shape, rows)

    @classmethod
    def of_columns(cls, columns: Tensor, length: int) -> Packing:
        """Pack the tokens in ``columns`` (B, N), ascending, of rows of ``length`` tokens."""
        batch, width = columns.shape
        first = torch.arange(batch, device=columns.device).unsqueeze(1) * length
        return cls((first + columns).flatten(), None, None, None, (batch, length, width))

    @property
    def is_empty(self) -> bool:
        """Whether no token takes part."""
        return self.tokens.shape[0] == 0

    @property
    def num_rows(self) -> int:
        """How many rows have a token that takes part (R)."""
        return self.shape[0] if self.rows is None else self.rows.shape[0]

    def columns(self) -> Tensor:  # (R, N)
        """Return the column of the token in each slot; empty ones have some column."""
        columns = self.tokens % self.shape[1]
        if self.source is not None:
            columns = columns.index_select(0, self.source)
        return columns.view(self.num_rows, self.shape[2])

    def of_rows(self, x: Tensor) -> Tensor:
        """Return what belongs to the R rows of x (B or 1, …)."""
        if self.rows is None or x.shape[0] == 1 < self.shape[0]:
            return x
        return x.index_select(0, self.rows)

    def table(self, of_positions: Tensor) -> Tensor:  # (1, 1, M, n)
        """Return the rows for packed tokens of a table (T, n) or (B, 1, T, n) of positions."""
        if of_positions.dim() == 2:
            return of_positions.index_select(0, self.tokens % self.shape[1])[None, None]
        return of_positions.flatten(0, 2).index_select(0, self.tokens)[None, None]

    def of_queries(self, of_all: Tensor) -> Tensor:  # (R, …, N, K)
        """Return the queries in slots of what is known of all of them, (B or 1, …, T, K)."""
        columns = self.columns()
        if of_all.shape[0] == 1:
            of_all = of_all.expand(columns.shape[0], *of_all.shape[1:])
        else:
            of_all = self.of_rows(of_all)
        index = columns.view(columns.shape[0], *(1,) * (of_all.dim() - 3), -1, 1)
        return of_all.take_along_dim(index, dim=-2)

    def take(self, x: Tensor) -> Tensor:  # (1, M, D)
        """Return the packed tokens of x (B, T, D)."""
        return x.flatten(0, 1).index_select(0, self.tokens).unsqueeze(0)

    def put(self, packed: Tensor, x: Tensor) -> Tensor:  # (B, T, D)
        """Return x (B, T, D) with ``packed`` (1, M, D) in the places of the packed tokens."""
        new = packed.squeeze(0).to(x.dtype)
        return x.flatten(0, 1).index_copy(0, self.tokens, new).view(x.shape)

    def spread(self, heads: Tensor) -> Tensor:  # (R, H, N, d)
        """Return the packed tokens' heads (1, H, M, d) by rows; empty slots hold some token's."""
        tokens = heads.squeeze(0).transpose(0, 1)  # (M, H, d), as projections have it in memory
        if self.source is not None:
            tokens = tokens.index_select(0, self.source)
        return tokens.unflatten(0, (self.num_rows, self.shape[2])).transpose(1, 2)

    def pack(self, heads: Tensor) -> Tensor:  # (1, H, M, d)
        """Return heads (R, H, N, d) packed."""
        tokens = heads.transpose(1, 2).flatten(0, 1)
        if self.slots is not None:
            tokens = tokens.index_select(0, self.slots)
        return tokens.transpose(0, 1).unsqueeze(0)

    def hold(
        self, heads: Tensor, held: Tensor | None, *, in_place: bool = False
    ) -> Tensor:  # (B, H, T, d)
        """Return packed heads (1, H, M, d) beside what others ``held`` (B, H, T, d), or 0.

        ``in_place``: ``held`` may be written to.
        """
        batch, length, _ = self.shape
        if held is None:
            others = heads.new_zeros(heads.shape[1], batch * length, heads.shape[3])
        else:
            others = held.transpose(0, 1).flatten(1, 2)
        write = others.index_copy_ if in_place else others.index_copy
        both = write(1, self.tokens, heads.squeeze(0).to(others.dtype))
        return both.unflatten(1, (batch, length)).transpose(0, 1)
