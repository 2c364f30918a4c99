"""Addition of many numbers: the sum of n operands, on more of them than trained.

>>> row = OperandAddition(digits=2).row([57, 68, 4])
>>> print(*row.source, "->", *row.target[-4:])
5 7 + 6 8 + 0 4 = _ _ _ _ -> 9 2 1 0

Operands are written with all their digits, the highest first; the sum is read at as many ``_`` as
the longest one has digits, lowest first.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import require
from tasks.base.positions import NO_LABEL, Rows, tokens_of
from tasks.base.task import Example

PLUS, EQUALS, SLOT = 10, 11, 12


@dataclass(frozen=True, kw_only=True)
class OperandAddition(LengthTask):
    """Sum of n numbers of a few digits, for more numbers than trained."""

    name: ClassVar[str] = "operand_addition"
    difficulty_name: ClassVar[str] = "operands"
    about: ClassVar[About] = About(
        family="length generalisation",
        hard="adding one number after the other, or in a tree of log2(n) levels",
        source="after arXiv 2502.17416 (n-ary addition; its code is not public)",
        published=("one layer looped: 99.6 % at 32 operands (second-hand)",),
    )

    digits: int = 3
    """Digits of an operand, at most 8."""
    train_lengths: tuple[int, int] = (2, 16)
    """Fewest and most operands in train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [18, 20, 24, 32])
    """Operands of longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "digits", 1 <= self.digits <= 8, "1 to 8")

    @property
    def _answer_digits(self) -> int:
        """Return the digits of the largest sum of any split, at least two more than operands."""
        most = max(self.train_lengths[1], *self.test_lengths, *self.valid_lengths)
        return max(self.digits + 2, len(str(most * (10**self.digits - 1))))

    def symbols(self) -> tuple[str, ...]:
        """Return the digits, the two signs, and what the sum is read at."""
        return (*string.digits, "+", "=", "_")

    def labels(self) -> tuple[str, ...]:
        """Return the digits."""
        return tuple(string.digits)

    def source_length(self, length: int) -> int:
        """Return the tokens of a row."""
        return length * (self.digits + 1) + self._answer_digits

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return sums of ``length`` random numbers."""
        return self._rows(draws.integers(10, length, self.digits))

    def _rows(self, operands: np.ndarray) -> Rows:
        """Return rows of operands (N, n, digits), the highest digit first."""
        count, length = operands.shape[:2]
        signs = np.full((count, length, 1), PLUS)
        signs[:, -1] = EQUALS
        asked = np.concatenate([operands, signs], axis=2).reshape(count, -1)
        size = self._answer_digits
        powers = 10 ** np.arange(self.digits)[::-1]
        total = (operands @ powers).sum(axis=1)
        answer = total[:, None] // 10 ** np.arange(size) % 10
        return Rows(
            np.concatenate([asked, np.full((count, size), SLOT)], axis=1),
            np.concatenate([np.full_like(asked, NO_LABEL), answer], axis=1),
        )

    def row(self, operands: Sequence[int]) -> Example:
        """Return the row of one sum."""
        digits = [[int(digit) for digit in f"{n:0{self.digits}d}"] for n in operands]
        made = self._rows(np.array([digits]))
        return Example(*tokens_of(self, made)[0], difficulty=float(len(operands)))
