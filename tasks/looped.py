"""Seven problems of looped Transformers: a loop for each symbol, on longer inputs than trained.

Question and answer stand in one row of fixed width. The answer begins at the place of the last
separator, and is read there, not one place later; padding fills the row:

>>> row = Looped(problem="copy").row([[1, 0, 1]])
>>> print(*row.source)
1 0 1 = _ _ _ _ _ _
>>> print(*(label.replace(UNSCORED, ".") for label in row.target))
. . . 1 0 1 . . . .

The published score counts all padding behind the answer as labels to predict, and exact match asks
for each of them (``scored: all``). By default one label of padding is scored where the length of
the answer has to be found, and none else: the rest says nothing about the problem.

>>> print(*Looped(problem="addition").row([[1, 1], [0, 1]]).target[5:8])  # 3 + 1, highest first
1 0 0
>>> print(*Looped(problem="multi").row([[1, 1], [0, 1, 1]]).target[6:11])  # 3 * 3, lowest first
1 0 0 1 0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.positions import NO_LABEL, Rows, tokens_of
from tasks.base.task import UNSCORED, Example
from tasks.chomsky.context_sensitive import carried

__all__ = ["PROBLEMS", "UNSCORED", "Looped", "Problem"]

PAD, IGNORED = 3, -1
UNIQUE = 50
"""Symbols of the problem dict."""


class Problem(NamedTuple):
    """What one problem is; numbers of symbols are those of the published code."""

    symbols: tuple[str, ...]
    labels: tuple[str, ...]
    width: tuple[int, int]
    """(a, b): a row of length n is a · n + b wide."""
    pad: int
    separators: tuple[int, ...]
    """What stands behind each operand."""
    answer: Callable[[list[np.ndarray]], np.ndarray]
    """Answers (N, M) to operands (N, T) each; ``IGNORED`` behind those that are shorter."""
    has_known_length: bool = True
    """Whether the input's length tells that of the answer."""
    size: int = 2
    """Symbols that operands are drawn from."""


def parity(operands: list[np.ndarray]) -> np.ndarray:
    """Return the sum modulo 2."""
    return operands[0].sum(axis=1, keepdims=True) % 2


def modulo10(operands: list[np.ndarray]) -> np.ndarray:
    """Return the sum modulo 10."""
    return operands[0].sum(axis=1, keepdims=True) % 10


def addition(operands: list[np.ndarray]) -> np.ndarray:
    """Return the sum of two numbers, highest bit first, in one bit more than they have."""
    total = np.pad((operands[0] + operands[1])[:, ::-1], ((0, 0), (0, 1)))
    return carried(total)[:, ::-1]


def popcount(operands: list[np.ndarray]) -> np.ndarray:
    """Return the number of ones, lowest bit first, without leading zeros: of none, nothing."""
    ones = operands[0].sum(axis=1, keepdims=True)
    places = np.arange(max(1, operands[0].shape[1].bit_length()))
    return np.where(ones >> places > 0, ones >> places & 1, IGNORED)


def product(operands: list[np.ndarray]) -> np.ndarray:
    """Return the product, lowest bit first, in as many bits as both factors have."""
    first, second = (operand[:, ::-1] for operand in operands)
    width = first.shape[1] + second.shape[1]
    total = np.zeros((len(first), width), dtype=np.int64)
    for place in range(first.shape[1]):
        total[:, place : place + second.shape[1]] += first[:, place, None] * second
    return carried(total)


def unique_set(operands: list[np.ndarray]) -> np.ndarray:
    """Return the distinct symbols in the order in which they first occur."""
    symbols = operands[0]
    earlier = np.tril(np.ones((symbols.shape[1],) * 2, dtype=bool), k=-1)
    is_new = ~((symbols[:, :, None] == symbols[:, None, :]) & earlier).any(axis=2)
    order = np.argsort(~is_new, axis=1, kind="stable")
    kept = np.take_along_axis(symbols, order, axis=1)
    count = is_new.sum(axis=1, keepdims=True)
    return np.where(np.arange(symbols.shape[1]) < count, kept, IGNORED)


BITS = ("0", "1")
DIGITS = tuple(map(str, range(10)))
NAMES = tuple(f"s{number}" for number in range(UNIQUE))
IN_BITS = (*BITS, "+", "_", "unused", "=")
OUT_BITS = (*BITS, "unused", "_")

PROBLEMS: dict[str, Problem] = {
    # Padding is the digit 3 in the published code of modulo10, and so is its label.
    "parity": Problem((*BITS, "=", "_"), OUT_BITS, (1, 2), 3, (2,), parity),
    "modulo10": Problem((*DIGITS, "="), DIGITS, (1, 2), 3, (10,), modulo10, size=10),
    "copy": Problem((*BITS, "=", "_"), OUT_BITS, (2, 4), 3, (2,), lambda operands: operands[0]),
    "addition": Problem(IN_BITS, OUT_BITS, (3, 6), 3, (2, 5), addition),
    "sum_reverse": Problem(IN_BITS, OUT_BITS, (1, 9), 3, (5,), popcount, False),
    "multi": Problem((*BITS, "*", *IN_BITS[3:]), OUT_BITS, (4, 8), 3, (2, 5), product),
    "dict": Problem(
        (*NAMES, "unused", "=", "ignored", "_"),
        (*NAMES, "unused0", "unused1", "ignored", "_"),
        (2, 4),
        53,
        (51,),
        unique_set,
        False,
        UNIQUE,
    ),
}
"""The problems by their published names."""


@dataclass(frozen=True, kw_only=True)
class Looped(LengthTask):
    """One of seven problems on bits, digits or symbols, aligned as for looped Transformers."""

    name: ClassVar[str] = "looped"
    difficulty_name: ClassVar[str] = "length of an operand"
    about: ClassVar[About] = About(
        family="length generalisation",
        hard="one more loop for each symbol more, beyond the loops of training",
        source="arXiv 2409.15647; truongbuu/looped-tf 7570c595",
        published=(
            "longest in train, tested at: parity 20, 50; modulo10 25, 50; copy 19, 30; addition "
            "19, 30; sum_reverse 19, 24; dict 19, 30; multi 11, 15 (configs)",
            "recipe: 256 wide, no positions, 1 to 4 layers, as many loops as the input is long, "
            "AdamW 1e-4, batch 64, 100k steps (configs)",
        ),
    )

    problem: Literal["parity", "modulo10", "copy", "addition", "sum_reverse", "multi", "dict"] = (
        "parity"
    )
    """sum_reverse: how many ones; dict: the distinct symbols; multi: one factor is short."""
    scored: Literal["answer", "all"] = "answer"
    """all: padding behind the answer too, as published."""
    train_lengths: tuple[int, int] = (1, 20)
    """Shortest and longest operand of train and iid; of multi the second factor."""
    test_lengths: list[int] = field(default_factory=lambda: [22, 24, 26, 30, 40, 50])
    """Lengths of longer."""

    @property
    def _problem(self) -> Problem:
        return PROBLEMS[self.problem]

    def symbols(self) -> tuple[str, ...]:
        """Return the published symbols."""
        return self._problem.symbols

    def labels(self) -> tuple[str, ...]:
        """Return the published labels."""
        return self._problem.labels

    def source_length(self, length: int) -> int:
        """Return the width of a row."""
        slope, base = self._problem.width
        return slope * length + base

    def loops(self, lengths: np.ndarray) -> np.ndarray:
        """Return the published loops: a row's length, of multi that of both factors multiplied."""
        return 2 * lengths if self.problem == "multi" else lengths

    def variants(self) -> list[str]:
        """Return the one kind of rows: in the test the first factor of multi has two bits."""
        return ["two bits"] if self.problem == "multi" else [""]

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return rows of a length; of multi the first factor has one bit or two."""
        if self.problem != "multi":
            return self._rows([self._operand(draws, length) for _ in self._problem.separators])
        sizes = 1 + draws.integers(2)
        made = [self._products(draws.part(np.flatnonzero(sizes == n)), length, n) for n in (1, 2)]
        source, target = (
            np.empty((len(draws), self.source_length(length)), dtype=np.int64) for _ in range(2)
        )
        for size, part in zip((1, 2), made, strict=True):
            source[sizes == size], target[sizes == size] = part.source, part.target
        return Rows(source, target)

    def draw_variant(self, draws: Draws, length: int, variant: str) -> Rows:
        """Return rows of a length as the test has them."""
        return self._products(draws, length, 2) if variant else self.draw(draws, length)

    def _operand(self, draws: Draws, length: int) -> np.ndarray:
        return draws.integers(self._problem.size, length)

    def _products(self, draws: Draws, length: int, first: int) -> Rows:
        return self._rows([self._operand(draws, first), self._operand(draws, length)])

    def _rows(self, operands: list[np.ndarray]) -> Rows:
        """Return rows of operands (N, T) each."""
        problem = self._problem
        count = len(operands[0])
        pieces = []
        for operand, separator in zip(operands, problem.separators, strict=True):
            pieces += [operand, np.full((count, 1), separator)]
        asked = np.concatenate(pieces, axis=1)
        width = self.source_length(operands[-1].shape[1])
        source = np.pad(asked, ((0, 0), (0, width - asked.shape[1])), constant_values=problem.pad)
        start = asked.shape[1] - 1
        target = np.full_like(source, NO_LABEL)
        answer = problem.answer(operands)[:, : width - start]
        target[:, start : start + answer.shape[1]] = answer
        size = (answer != IGNORED).sum(axis=1)
        behind = np.arange(width) - start - size[:, None]  # places behind the answer, from 0
        ends = 0 if problem.has_known_length else 1
        target[(behind >= 0) & (behind < (width if self.scored == "all" else ends))] = problem.pad
        return Rows(source, target)

    def row(self, operands: Sequence[Sequence[int]]) -> Example:
        """Return the row of one question."""
        made = self._rows([np.array([operand]) for operand in operands])
        return Example(*tokens_of(self, made)[0], difficulty=float(len(operands[-1])))
