"""Induction over p hops: from each letter back to its last occurrence, one place on, p times.

A row is the number of hops p and a string without equal neighbours. From place i one hop goes to
the last place q < i with the same letter, and on to q + 1. The label is the letter after p hops,
``~`` where there is no such place; that of the first token, the number, is ``_``:

>>> row = InductionHops.row("2cbcacbabcb", letters=3)
>>> "".join(row.target)
'_~~~~~baccb'
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import require
from tasks.base.positions import Rows
from tasks.base.task import Example


def after_hops(letters: np.ndarray, hops: np.ndarray) -> np.ndarray:
    """Return the letter that each place leads to, −1 for none.

    Args:
        letters: (N, T) numbers of letters.
        hops: (N,).
    """
    count, length = letters.shape
    places = np.arange(length)
    step = np.zeros((count, length), dtype=np.int64)  # one hop from each place; 0 is nowhere
    for letter in range(letters.max(initial=0) + 1):
        same = letters == letter
        last = np.maximum.accumulate(np.where(same, places, -1), axis=1)
        before = np.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        step = np.where(same, before + 1, step)
    # A place before the first stands for nowhere, and leads to itself.
    step = np.pad(np.where(step > 0, step + 1, 0), ((0, 0), (1, 0)))
    at = np.broadcast_to(np.arange(length + 1), step.shape)
    for hop in range(int(hops.max(initial=0))):
        at = np.where(hop < hops[:, None], np.take_along_axis(step, at, axis=1), at)
    padded = np.pad(letters, ((0, 0), (1, 0)), constant_values=-1)
    return np.take_along_axis(padded, at, axis=1)[:, 1:]


@dataclass(frozen=True, kw_only=True)
class InductionHops(LengthTask):
    """p-hop induction over a string, for many numbers of hops in one model."""

    name: ClassVar[str] = "p_hop"
    difficulty_name: ClassVar[str] = "hops"
    shortest: ClassVar[int] = 0
    about: ClassVar[About] = About(
        family="recall and hops",
        hard="hops that build on one another: about log2(p) + 2 layers, or one layer looped",
        source="arXiv 2402.09268; chsanford/hop-induction-heads 5735bca9",
        published=(
            "error of all labels at p = 1, 2, 4, 8, 16 (repository, 4 heads): 2 layers .010 .140 "
            ".423 .658 .737; 4 layers .001 .003 .015 .216 .612; 6 layers .000 .000 .002 .006 .062",
            "setting: 100 tokens, 4 letters, p from 0 to 16, 128 wide, AdamW 1e-4, 100k steps of "
            "32 fresh rows (repository)",
        ),
    )

    letters: int = 4
    """Letters of the strings, 2 to 26."""
    tokens: int = 99
    """Tokens of a row, the number of hops among them."""
    train_lengths: tuple[int, int] = (0, 16)
    """Fewest and most hops in train and iid; 0 copies."""
    test_lengths: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Hops of longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "letters", 2 <= self.letters <= 26, "2 to 26")
        require(self, "tokens", self.tokens >= 3, "at least 3")

    @property
    def allows_trained_lengths(self) -> bool:
        """Return true: the published test is of hops that train has."""
        return True

    def symbols(self) -> tuple[str, ...]:
        """Return the letters, and then the numbers of hops."""
        most = max(self.train_lengths[1], *self.test_lengths, *self.valid_lengths)
        return (*string.ascii_lowercase[: self.letters], *map(str, range(most + 1)))

    def labels(self) -> tuple[str, ...]:
        """Return the letters, nowhere, and the label of the number of hops."""
        return (*string.ascii_lowercase[: self.letters], "~", "_")

    def source_length(self, length: int) -> int:
        """Return the tokens of every row."""
        return self.tokens

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return strings with ``length`` hops."""
        moves = 1 + draws.integers(self.letters - 1, self.tokens - 1)
        moves[:, 0] = draws.integers(self.letters)
        return self.rows(moves.cumsum(axis=1) % self.letters, length)

    def rows(self, letters: np.ndarray, hops: int) -> Rows:
        """Return strings (N, T), given by the numbers of their letters, with their labels."""
        count = len(letters)
        found = after_hops(letters, np.full(count, hops))
        source = np.pad(letters, ((0, 0), (1, 0)), constant_values=self.letters + hops)
        target = np.where(found < 0, self.letters, found)
        return Rows(source, np.pad(target, ((0, 0), (1, 0)), constant_values=self.letters + 1))

    @staticmethod
    def row(text: str, *, letters: int) -> Example:
        """Return the row of a published input: the character 48 + p, and the string."""
        numbers = np.array([[ord(letter) - ord("a") for letter in text[1:]]])
        hops = ord(text[0]) - 48
        task = InductionHops(letters=letters, train_lengths=(0, hops), tokens=len(text))
        made = task.rows(numbers, hops)
        source, target = made.source[0].tolist(), made.target[0].tolist()
        symbols, labels = task.symbols(), task.labels()
        return Example(
            tuple(symbols[number] for number in source),
            tuple(labels[number] for number in target),
            difficulty=float(hops),
        )
