"""Bracketed expressions modulo 5: how they are drawn, and what they are worth.

An expression of length 1 is a digit d, of 2 −d, of 3 (d), of 4 (−d); a longer one is (L op R), L of
a random length from 1 to what leaves one token for R.

>>> tokens = np.array([[8, 6, 4, 6, 6, 3, 9]])  # (-4--3)
>>> int(evaluate(tokens, opening=8, closing=9)[0])
4
"""

from __future__ import annotations

import numpy as np

from tasks.base.draws import Draws
from tasks.chomsky.language import MODULUS

PLUS, MINUS, TIMES = 5, 6, 7


def draw_expressions(
    draws: Draws, length: int, *, num_operators: int, opening: int, closing: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return expressions (N, length) of the first ``num_operators`` of + - *, and values (N,).

    All parts of all rows that wait to be filled are divided at once; what is drawn for a part is
    told by its row and its first place, which no other part has.
    """
    count = len(draws)
    digits = draws.integers(MODULUS, length)  # where nothing else comes to stand
    operators = PLUS + draws.integers(num_operators, length)
    places = draws.uniform(length)
    tokens = digits.copy()
    values = np.zeros_like(digits)  # of the part that begins at a place
    divided = []
    rows = np.arange(count)
    starts, sizes = np.zeros(count, dtype=np.int64), np.full(count, length)
    while len(rows):
        short = sizes < 5
        at, size = (rows[short], starts[short]), sizes[short]
        digit = digits[at[0], at[1] + size // 2]
        values[at] = np.where(size % 2 == 0, -digit, digit)
        tokens[rows[sizes == 2], starts[sizes == 2]] = MINUS
        tokens[rows[sizes == 4], starts[sizes == 4] + 1] = MINUS
        bracketed = sizes >= 3
        tokens[rows[bracketed], starts[bracketed]] = opening
        tokens[rows[bracketed], starts[bracketed] + sizes[bracketed] - 1] = closing
        rows, starts, sizes = rows[~short], starts[~short], sizes[~short]
        left = 1 + (places[rows, starts] * (sizes - 4)).astype(np.int64)
        operator = operators[rows, starts]
        tokens[rows, starts + 1 + left] = operator
        seconds = starts + 2 + left
        divided.append((rows, starts, seconds, operator))
        rows = np.concatenate([rows, rows])
        starts = np.concatenate([starts + 1, seconds])
        sizes = np.concatenate([left, sizes - 3 - left])
    for rows, starts, seconds, operator in reversed(divided):
        one, other = values[rows, starts + 1], values[rows, seconds]
        joined = np.where(operator == TIMES, one * other, one + other)
        values[rows, starts] = np.where(operator == MINUS, one - other, joined) % MODULUS
    return tokens, values[:, 0] % MODULUS


def evaluate(tokens: np.ndarray, *, opening: int, closing: int) -> np.ndarray:
    """Return the values (N,) modulo 5 of expressions (N, T).

    A minus is a sign where no value stands before it. A row's stack holds, for each open bracket,
    the value so far and the operator that waits; a value that is read is joined with them.
    """
    count, length = tokens.shape
    rows = np.arange(count)
    shape = (count, length + 2)
    values = np.zeros(shape, dtype=np.int64)
    waiting = np.full(shape, PLUS)  # 0 + the first value
    signs = np.ones(shape, dtype=np.int64)
    has_value = np.zeros(shape, dtype=bool)
    level = np.zeros(count, dtype=np.int64)

    def join(chosen: np.ndarray, value: np.ndarray) -> None:
        """Join a value (len(chosen),) with what waits on the level of rows ``chosen``."""
        at = chosen, level[chosen]
        before, operator, value = values[at], waiting[at], value * signs[at]
        joined = np.where(operator == TIMES, before * value, before + value)
        values[at] = np.where(operator == MINUS, before - value, joined) % MODULUS
        signs[at], has_value[at] = 1, True

    for place in range(length):
        token = tokens[:, place]
        opens = rows[token == opening]
        level[opens] += 1
        at = opens, level[opens]
        values[at], waiting[at], signs[at], has_value[at] = 0, PLUS, 1, False
        digits = rows[token < MODULUS]
        join(digits, token[digits])
        closes = rows[token == closing]
        inner = values[closes, level[closes]]
        level[closes] -= 1
        join(closes, inner)
        operators = rows[(token >= PLUS) & (token < opening)]
        at, operator = (operators, level[operators]), token[operators]
        follows = has_value[at]
        waiting[at] = np.where(follows, operator, waiting[at])
        signs[at] = np.where(follows, 1, -signs[at])  # what stands before a value is a sign
        has_value[at] = False
    return values[rows, 0]
