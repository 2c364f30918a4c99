"""Associative recall of many pairs: each key is met once more, and asks for its value.

A row begins with K pairs of a key and a value; keys are below half of the vocabulary, values above.
Each key then comes once more, at an even distance behind the pairs, and its value is the label
there. Token 0 is between them, or any token with ``noise``, which may be a key, too:

>>> tokens = [9, 25, 4, 27, 9, 0, 0, 0, 4, 0]
>>> {place: label for place, label in enumerate(recalled(tokens, pairs=2)) if label is not None}
{4: 25, 8: 27}

The distances are drawn without repetition, with weights a · k^(a − 1) for k = 1, 2, …: a of 0.01
keeps queries close behind the pairs, 1 spreads them evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import require
from tasks.base.positions import NO_LABEL, Rows


def recalled(tokens: Sequence[int], *, pairs: int) -> list[int | None]:
    """Return what each token of a row asks for: the value of a key at an even distance, or None."""
    values = dict(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
    return [
        values.get(token) if place >= 2 * pairs and place % 2 == 0 else None
        for place, token in enumerate(tokens)
    ]


@dataclass(frozen=True, kw_only=True)
class MultiQueryRecall(LengthTask):
    """Multi-query associative recall (MQAR) of key-value pairs, in rows of several lengths."""

    name: ClassVar[str] = "mqar"
    difficulty_name: ClassVar[str] = "tokens of the row"
    shortest: ClassVar[int] = 8
    about: ClassVar[About] = About(
        family="recall and hops",
        hard="keeping many pairs at once; attention does it, a state of fixed size does not",
        source="arXiv 2312.04927; HazyResearch/zoology d88d6f54",
        published=(
            "two-layer attention models solve all of it (repository)",
            "sets: train 64 tokens with 4 pairs (100k rows), 128 with 8, 256 with 16, 32 and 64 "
            "(20k each); tests up to 1,024 with 256; vocabulary 8,192 (repository)",
        ),
    )

    vocabulary: int = 8192
    """Tokens, half of them keys and half of them values."""
    tokens_per_pair: int = 16
    """Tokens of a row for each pair that it begins with, in train and iid; at least 4."""
    test_tokens_per_pair: list[int] = field(default_factory=lambda: [16, 4])
    """The same in longer, in turn; each is a category."""
    closeness: float = 0.01
    """a of the weights by which distances are drawn."""
    noise: bool = True
    """Whether other places hold random tokens and not 0."""
    train_lengths: tuple[int, int] = (64, 64)
    """Fewest and most tokens of a row in train and iid; of an odd number one fewer."""
    test_lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024])
    """Tokens of a row in longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = max(self.train_lengths[1], *self.test_lengths, *self.valid_lengths)
        require(self, "vocabulary", self.vocabulary > longest, f"above {longest}, the longest row")
        require(self, "tokens_per_pair", self.tokens_per_pair >= 4, "at least 4")
        fits = bool(self.test_tokens_per_pair) and min(self.test_tokens_per_pair) >= 4
        require(self, "test_tokens_per_pair", fits, "one or more of at least 4")
        require(self, "closeness", self.closeness > 0, "above 0")

    @property
    def allows_trained_lengths(self) -> bool:
        """Return true: rows of train's length with more pairs are a test, too."""
        return True

    def symbols(self) -> tuple[str, ...]:
        """Return all tokens."""
        return tuple(map(str, range(self.vocabulary)))

    def labels(self) -> tuple[str, ...]:
        """Return the values."""
        return self.symbols()[self.vocabulary // 2 :]

    def variants(self) -> list[str]:
        """Return a category for each number of tokens per pair in longer."""
        return [f"{each} tokens a pair" for each in self.test_tokens_per_pair]

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return rows of a length with train's share of pairs."""
        return self._rows(draws, length, self.tokens_per_pair)

    def draw_variant(self, draws: Draws, length: int, variant: str) -> Rows:
        """Return rows of a length with the share of pairs that a category names."""
        shares = dict(zip(self.variants(), self.test_tokens_per_pair, strict=True))
        return self._rows(draws, length, shares.get(variant, self.tokens_per_pair))

    def _rows(self, draws: Draws, length: int, tokens_per_pair: int) -> Rows:
        length -= length % 2
        pairs, half = max(1, length // tokens_per_pair), self.vocabulary // 2
        keys = 1 + draws.distinct(half - 1, pairs)
        values = half + draws.branch("values").distinct(self.vocabulary - half, pairs)
        shape = (len(draws), length)
        source = np.zeros(shape, dtype=np.int64)
        if self.noise:
            source = draws.branch("noise").integers(self.vocabulary, length)
        source[:, : 2 * pairs : 2], source[:, 1 : 2 * pairs : 2] = keys, values
        free = np.arange(1, (length - 2 * pairs) // 2 + 1)
        weights = self.closeness * free ** (self.closeness - 1)
        # The order of exponential times, each at its rate, is that of weighted draws.
        times = -np.log1p(-draws.branch("places").uniform(len(free))) / weights
        places = 2 * pairs + 2 * np.argsort(times, axis=1)[:, :pairs]
        np.put_along_axis(source, places, keys, axis=1)
        target = np.full(shape, NO_LABEL)
        np.put_along_axis(target, places, values - half, axis=1)
        return Rows(source, target)
