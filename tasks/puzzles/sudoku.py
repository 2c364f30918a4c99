"""Sudoku: fill a grid so that no line, column or box has a digit twice.

Every puzzle has one solution. Train sees a number of them in many equivalent forms, made as
published: the grid may be transposed where boxes are square, then its bands and the lines in each
are permuted, its stacks and the columns in each, and the digits renamed:

>>> task = Sudoku(size=4, puzzles=2, valid_puzzles=1, test_puzzles=1)
>>> row = task.split("train")[10**9]
>>> [len(set(row.target[line : line + 4])) for line in range(0, 16, 4)]
[4, 4, 4, 4]
>>> all(given in (".", label) for given, label in zip(row.source, row.target, strict=True))
True

The official set, Sudoku-Extreme, is the task ``sudoku_extreme``.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.options import require
from tasks.puzzles.base import PuzzleTask
from tasks.puzzles.solving import Boxes, puzzle

BOXES = {4: Boxes(2, 2), 6: Boxes(2, 3), 9: Boxes(3, 3)}
BLANKS = {4: 10, 6: 22, 9: 50}
"""Blanks of a puzzle of each size, unless an option says otherwise."""


def rearranged(
    grids: np.ndarray,
    *,
    digits: np.ndarray,
    transpose: np.ndarray,
    lines: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Return grids (N, n, n) in another form.

    Args:
        grids: 0 is blank.
        digits: (N, n + 1) what each digit becomes; a blank stays 0.
        transpose: (N,) bool.
        lines: (N, n): from which line each one comes, after transposing.
        columns: (N, n): the same for columns.
    """
    turned = np.where(transpose[:, None, None], grids.transpose(0, 2, 1), grids)
    rows = np.arange(len(grids))[:, None, None]
    moved = turned[rows, lines[:, :, None], columns[:, None, :]]
    return digits[rows, moved]


def in_other_forms(
    draws: Draws, questions: np.ndarray, answers: np.ndarray, *, size: int, boxes: Boxes
) -> tuple[np.ndarray, np.ndarray]:
    """Return puzzles in another form each: transposed, permuted and renamed as published.

    Args:
        draws: N of them.
        questions: (N, cells), 0 is blank.
        answers: (N, cells), from 0.
    """
    count = len(draws)
    names = np.pad(1 + draws.permutations(size), ((0, 0), (1, 0)))
    coin = draws.integers(2).astype(bool) & (boxes.lines == boxes.columns)
    lines = _grouped(draws, size // boxes.lines, boxes.lines)
    columns = _grouped(draws, size // boxes.columns, boxes.columns)
    changed = [
        rearranged(
            grid.reshape(count, size, size),
            digits=names,
            transpose=coin,
            lines=lines,
            columns=columns,
        ).reshape(count, -1)
        for grid in (questions, answers + 1)
    ]
    return changed[0], changed[1] - 1


@dataclass(frozen=True, kw_only=True)
class Sudoku(PuzzleTask):
    """Sudoku of 4, 6 or 9 digits, from few puzzles and their equivalent forms."""

    name: ClassVar[str] = "sudoku"
    difficulty_name: ClassVar[str] = "blanks"
    about: ClassVar[About] = About(
        family="puzzles",
        hard="search: a cell is often known only after others are; one wrong cell spoils the grid",
        source="Sudoku-Extreme of arXiv 2506.21734; augmentation of "
        "SamsungSAILMontreal/TinyRecursiveModels e7b68717",
        published=(
            "Sudoku-Extreme, whole grids: TRM 87.4 % (74.7 with attention), HRM 55.0 %, trained on "
            "1,000 puzzles with 1,000 forms each (second-hand); not these puzzles",
        ),
    )

    size: Literal[4, 6, 9] = 9
    """Digits, and lines and columns of the grid; boxes of 2 × 2, 2 × 3 or 3 × 3."""
    blanks: int | None = None
    """Blanks of a puzzle, or as many as leave one solution; null: 10, 22 or 50."""

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.size**2 - 1
        fits = self.blanks is None or 1 <= self.blanks <= most
        require(self, "blanks", fits, f"1 to {most}, or null")

    def symbols(self) -> tuple[str, ...]:
        """Return the blank and the digits."""
        return (".", *self.labels())

    def labels(self) -> tuple[str, ...]:
        """Return the digits."""
        return tuple(map(str, range(1, self.size + 1)))

    def cells(self) -> int:
        """Return the cells of the grid."""
        return self.size**2

    def difficulty(self, question: np.ndarray) -> float:
        """Return the blanks of a question (cells,)."""
        return float((question == 0).sum())

    def make(self, split: str, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return questions and answers of some puzzles of a split, both (N, cells)."""
        blanks = BLANKS[self.size] if self.blanks is None else self.blanks
        pairs = [_puzzle(self.seed, split, n, self.size, blanks) for n in numbers.tolist()]
        questions, answers = np.array(pairs, dtype=np.int64).transpose(1, 0, 2)
        return questions, answers - 1

    def changed(
        self, draws: Draws, questions: np.ndarray, answers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the puzzles in another form, one for each of the draws."""
        return in_other_forms(draws, questions, answers, size=self.size, boxes=BOXES[self.size])


@functools.lru_cache(maxsize=1 << 16)
def _puzzle(
    seed: int, split: str, number: int, size: int, blanks: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    generator = random.Random(f"sudoku {seed} {split} {number}")
    return puzzle(generator, BOXES[size], blanks)


def _grouped(draws: Draws, groups: int, members: int) -> np.ndarray:
    """Return (N, groups · members): groups in random order, and the members of each."""
    order = draws.permutations(groups)
    inner = np.stack([draws.permutations(members) for _ in range(groups)], axis=1)
    return (members * order[:, :, None] + inner).reshape(len(draws), -1)
