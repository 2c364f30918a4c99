"""A cellular automaton in one dimension: the row after a number of steps, on more than trained.

A row is the number of steps, in binary with the lowest bit first, and the cells of a ring. At each
cell stands the label that it has after those steps, under an elementary rule of Wolfram's (110):

>>> evolve(np.array([[0, 0, 0, 1]]), np.array([2]), rule=110).tolist()
[[0, 1, 1, 1]]
>>> row = Cellular(cells=4).row([0, 0, 0, 1], steps=2)
>>> print(*row.source)
0 1 0 0 0 0 0 : 0 0 0 1
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
from tasks.base.positions import NO_LABEL, Rows, tokens_of
from tasks.base.task import Example

COLON = 2
STEP_BITS = 7


def evolve(cells: np.ndarray, steps: np.ndarray, *, rule: int) -> np.ndarray:
    """Return rings of cells (N, T) after each one's number of steps (N,)."""
    for step in range(int(steps.max(initial=0))):
        pattern = np.roll(cells, 1, axis=1) << 2 | cells << 1 | np.roll(cells, -1, axis=1)
        cells = np.where(step < steps[:, None], rule >> pattern & 1, cells)
    return cells


@dataclass(frozen=True, kw_only=True)
class Cellular(LengthTask):
    """Rule 110 (or another one) on a ring, for more steps than trained."""

    name: ClassVar[str] = "cellular"
    difficulty_name: ClassVar[str] = "steps"
    shortest: ClassVar[int] = 0
    about: ClassVar[About] = About(
        family="length generalisation",
        hard="a rule applied again and again; rule 110 has no shortcut that is known",
        source="ashlab11/generalization 227c1030, deepthinking/utils/cellular_data.py",
        published=(
            "setting: 24 cells, 0 to 31 steps in train, 32 to 63 in the test, 10,000 rows "
            "each (repository)",
        ),
    )

    rule: int = 110
    """Number of the rule, 0 to 255."""
    cells: int = 24
    """Cells of the ring."""
    train_lengths: tuple[int, int] = (0, 31)
    """Fewest and most steps in train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [32, 36, 40, 48, 56, 63])
    """Steps of longer, at most 127."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "rule", 0 <= self.rule <= 255, "0 to 255")
        require(self, "cells", self.cells >= 3, "at least 3")
        most = 2**STEP_BITS - 1
        require(self, "test_lengths", max(self.test_lengths) <= most, f"at most {most} each")

    def symbols(self) -> tuple[str, ...]:
        """Return the bits and the colon."""
        return ("0", "1", ":")

    def labels(self) -> tuple[str, ...]:
        """Return the bits."""
        return ("0", "1")

    def source_length(self, length: int) -> int:
        """Return the tokens of every row."""
        return STEP_BITS + 1 + self.cells

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return random rings with ``length`` steps."""
        return self._rows(draws.integers(2, self.cells), length)

    def _rows(self, cells: np.ndarray, steps: int) -> Rows:
        count = len(cells)
        head = np.array([*(steps >> bit & 1 for bit in range(STEP_BITS)), COLON])
        head = np.broadcast_to(head, (count, len(head)))
        after = evolve(cells, np.full(count, steps), rule=self.rule)
        return Rows(
            np.concatenate([head, cells], axis=1),
            np.concatenate([np.full_like(head, NO_LABEL), after], axis=1),
        )

    def row(self, cells: Sequence[int], *, steps: int) -> Example:
        """Return the row of one ring."""
        made = self._rows(np.array([cells]), steps)
        return Example(*tokens_of(self, made)[0], difficulty=float(steps))
