"""What every kind of position has.

Shapes: B rows, T queries, K keys, H heads, d head size, D model, W distances. A *position* is a
column of the sequence, counted from 0 at its first token. ``positions`` is (T,) where all rows
agree and (B, T) where rows of different length are decoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from moeut.options import Options


class RotaryTables(NamedTuple):
    """Cosines and sines (..., T, n/2) of the angles that rotate n channels of a head."""

    cosine: Tensor
    sine: Tensor
    pairs: bool = False
    """Whether channels 2i and 2i+1 are rotated together, not i and i + n/2."""


class PositionTables(NamedTuple):
    """What all attentions of one pass need to know of positions; at most one is there."""

    rotary: RotaryTables | None = None
    distances: Any = None
    """What the scheme's ``LogitPosition`` is given."""


@dataclass(frozen=True, kw_only=True)
class PositionOptions(Options):
    """What every kind of position has; a scheme overrides the places where it acts."""

    @property
    def max_tokens(self) -> int | None:
        """The longest row that the scheme has positions for; None: there is no bound."""
        return None

    def check(self, head_size: int) -> None:
        """Raise ``OptionError`` where heads of ``head_size`` channels do not serve."""

    def told(self, words: Sequence[str], source_words: Sequence[str] | None) -> Self:
        """Return these options with what follows from the words of the task filled in.

        Word i is token i; ``source_words`` are those that an encoder reads, where they are others.
        """
        return self

    def check_told(self, has_source: bool) -> None:
        """Raise ``OptionError`` if something that the words of the task decide is left out."""

    def of_source(self) -> Self:
        """Return the options of a stack that reads the source of an encoder-decoder."""
        return self

    def of_layer(self, layer: int) -> Self:
        """Return the options of a distinct layer, numbered from 0; -1 is the last."""
        return self

    def build_absolute(self, d_model: int) -> AbsolutePositions | None:
        """Return the module that adds positions to the embedded tokens, if the scheme does."""
        return None

    def build_relative(self, num_heads: int, head_size: int, d_model: int) -> LogitPosition | None:
        """Return the module that a self-attention computes its logits with, if not the usual."""
        return None

    def tables(
        self,
        positions: Tensor,
        offset: int | None,
        num_keys: int,
        *,
        head_size: int,
        d_model: int,
        like: Tensor,
        key_positions: Tensor | None = None,
        training: bool = False,
    ) -> PositionTables:
        """Return what the attentions of a pass share.

        ``positions`` (T,) or (B, T) are those of the queries; ``offset`` is the first of them where
        all rows agree, and None where they do not; ``num_keys`` columns may be looked at. ``like``
        gives dtype and device. ``key_positions`` (B, K) are given where a column is not a key's
        absolute position: in rows of several documents. In ``training`` a scheme may draw some.
        """
        return PositionTables()

    def logit_macs(self, *, d_model: int, num_heads: int, width: int, length: int) -> int:
        """Return the multiply-accumulates that the scheme adds to a layer for one token."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NoPosition(PositionOptions):
    """No position information besides the causal mask."""

    kind: ClassVar[str] = "none"


class TokenStore(Protocol):
    """What a pass keeps of earlier tokens, by name."""

    def append(self, name: str, new: Tensor) -> Tensor:
        """Take up rows of new tokens (B, T, N); return those of all columns (B, K, N)."""


class Entry(NamedTuple):
    """What is known of the tokens of a pass as they enter a stack."""

    positions: Tensor
    """(T,) or (B, T), counted in each document anew."""

    columns: Tensor
    """(T,) or (B, T)"""

    tokens: Tensor | None = None
    """(B, T) whole numbers; None: the caller gave embedded tokens alone."""

    document_numbers: Tensor | None = None
    """(B, T)"""

    embedding_factor: float = 1.0
    """What token embeddings were multiplied by."""

    store: TokenStore | None = None
    """What holds earlier tokens, where they are not read again."""


class AbsolutePositions(nn.Module):
    """What is added to the embedded tokens."""

    def enter(self, x: Tensor, entry: Entry) -> Tensor:
        """Return the embedded tokens x (B, T, D) with what their positions add."""
        return x + self(entry.positions, x.dtype)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:  # (*positions.shape, D)
        """Return the vectors of ``positions`` (T,) or (B, T)."""
        raise NotImplementedError

    def check_length(self, length: int) -> None:
        """Raise ``ValueError`` if a sequence of ``length`` tokens has positions without one."""


class RelativeTerms(NamedTuple):
    """What relative positions add to the logits (arXiv 1901.02860)."""

    content: Tensor
    """(H, d) added to the queries that meet keys."""
    position: Tensor
    """(H, d) added to the queries that meet distances."""
    table: Tensor
    """(W, H, d) projected distances: query t and key j are row j - t + T - 1."""


class LogitPosition(nn.Module):
    """What computes the logits of an attention from queries, keys and their places."""

    def forward(self, query: Tensor, key: Tensor, distances: Any, routed: Tensor) -> Tensor:
        """Return logits (B, H, T, K) of queries (B, H, T, d) and keys (B, H, K, d).

        ``distances`` is what the scheme's ``tables`` made of the places, ``routed`` (B, T, D) what
        the queries were projected from.
        """
        raise NotImplementedError

    def terms(self, query: Tensor, distances: Any) -> tuple[Tensor, RelativeTerms, float] | None:
        """Return queries (B, H, T, d), what is added to them, and the scale of the logits.

        For ``attention.fused``; None where the logits are something else.
        """
        return None
