"""Sudoku grids of any box: candidates as bits, the most constrained cell first.

>>> solve((1, 2, 0, 4, 3, 0, 0, 0, 0, 0, 4, 3, 4, 0, 0, 0), Boxes(2, 2), limit=2)
[(1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1)]
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import NamedTuple

Grid = tuple[int, ...]
"""Cells from the first line to the last; 0 is blank."""


class Boxes(NamedTuple):
    """Lines and columns of a box; a grid has as many boxes side by side as a box has lines."""

    lines: int
    columns: int

    @property
    def size(self) -> int:
        """Return the lines of the grid, which are the digits."""
        return self.lines * self.columns


@functools.cache
def units_of(boxes: Boxes) -> tuple[tuple[int, int, int], ...]:
    """Return line, column and box of every cell, numbered in one row."""
    size = boxes.size
    return tuple(
        (
            line,
            size + column,
            2 * size + line // boxes.lines * boxes.lines + column // boxes.columns,
        )
        for line in range(size)
        for column in range(size)
    )


def solve(
    grid: Sequence[int], boxes: Boxes, *, limit: int, generator: random.Random | None = None
) -> list[Grid]:
    """Return up to ``limit`` solutions; with a generator in random order.

    Raises:
        ValueError: a unit has a digit twice.
    """
    size, units = boxes.size, units_of(boxes)
    every = (1 << size) - 1
    free = [every] * (3 * size)
    cells = list(grid)
    for place, digit in enumerate(cells):
        if digit:
            bit = 1 << (digit - 1)
            for unit in units[place]:
                if not free[unit] & bit:
                    raise ValueError(f"digit {digit} twice in a line, a column or a box")
                free[unit] &= ~bit
    blanks = [place for place, digit in enumerate(cells) if not digit]
    found: list[Grid] = []

    def search() -> None:
        best, fewest, candidates = -1, size + 1, 0
        for index, place in enumerate(blanks):
            line, column, box = units[place]
            bits = free[line] & free[column] & free[box]
            count = bits.bit_count()
            if count < fewest:
                best, fewest, candidates = index, count, bits
                if count < 2:
                    break
        if best < 0:
            found.append(tuple(cells))
            return
        if not candidates:
            return
        place = blanks[best]
        blanks[best] = blanks[-1]
        blanks.pop()
        digits = [digit for digit in range(size) if candidates >> digit & 1]
        if generator is not None:
            generator.shuffle(digits)
        line, column, box = units[place]
        for digit in digits:
            bit = 1 << digit
            free[line] ^= bit
            free[column] ^= bit
            free[box] ^= bit
            cells[place] = digit + 1
            search()
            free[line] ^= bit
            free[column] ^= bit
            free[box] ^= bit
            if len(found) >= limit:
                break
        cells[place] = 0
        blanks.append(place)

    search()
    return found


def puzzle(generator: random.Random, boxes: Boxes, blanks: int) -> tuple[Grid, Grid]:
    """Return a question with one solution, and that; fewer blanks where no more can be made."""
    answer = solve([0] * boxes.size**2, boxes, limit=1, generator=generator)[0]
    question = list(answer)
    left = blanks
    for place in generator.sample(range(len(question)), len(question)):
        if not left:
            break
        digit, question[place] = question[place], 0
        if len(solve(question, boxes, limit=2)) == 1:
            left -= 1
        else:
            question[place] = digit
    return tuple(question), answer
