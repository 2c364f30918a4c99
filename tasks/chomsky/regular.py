"""The four regular tasks: a finite automaton decides them.

>>> int(parity_check(np.array([[1, 0, 1, 0, 1, 0, 0]]))[0][0, 0])
1
>>> int(even_pairs(np.array([[0, 1, 1, 0, 1]]))[0][0, 0])  # one 01 and one 10, and one 01 more
1
>>> int(cycle_navigation(np.array([[2, 2, 0, 1, 2]]))[0][0, 0])  # right, right, left, stay, right
2
>>> int(modular_arithmetic(np.array([[1, 5, 2, 7, 3]]))[0][0, 0])  # 1 + 2 * 3
2
"""

from __future__ import annotations

import numpy as np

from tasks.base.draws import Draws
from tasks.chomsky.language import BITS, DIGITS, MODULUS, Language, Outputs, every, random_bits

PLUS, MINUS, TIMES = 5, 6, 7


def even_pairs(inputs: np.ndarray) -> Outputs:
    """Return 1 where 01 and 10 together occur an odd number of times: first and last differ."""
    return every((inputs[:, 0] != inputs[:, -1]).astype(np.int64))


def parity_check(inputs: np.ndarray) -> Outputs:
    """Return the number of ones, modulo 2."""
    return every(inputs.sum(axis=1) % 2)


def cycle_navigation(inputs: np.ndarray) -> Outputs:
    """Return the place on a cycle of five after steps 0 left, 1 stay, 2 right, from 0."""
    return every((inputs - 1).sum(axis=1) % MODULUS)


def modular_arithmetic(inputs: np.ndarray) -> Outputs:
    """Return the value modulo 5 of digits with + - * between them, * before the others."""
    total = np.zeros(len(inputs), dtype=np.int64)
    term = inputs[:, 0]
    for place in range(1, inputs.shape[1], 2):
        operator, digit = inputs[:, place], inputs[:, place + 1]
        is_product = operator == TIMES
        total = np.where(is_product, total, total + term)
        signed = np.where(operator == MINUS, -digit, digit)
        term = np.where(is_product, term * digit % MODULUS, signed)
    return every((total + term) % MODULUS)


def draw_arithmetic(draws: Draws, length: int) -> np.ndarray:
    """Return digits with operators between them, one token shorter where the length is even."""
    length -= length % 2 == 0
    tokens = draws.integers(MODULUS, length)
    tokens[:, 1::2] = PLUS + draws.integers(3, length // 2)
    return tokens


REGULAR: dict[str, Language] = {
    "even_pairs": Language(
        level="regular", symbols=BITS, labels=BITS, draw=random_bits, solve=even_pairs
    ),
    "parity_check": Language(
        level="regular", symbols=BITS, labels=BITS, draw=random_bits, solve=parity_check
    ),
    "cycle_navigation": Language(
        level="regular",
        symbols=("left", "stay", "right"),
        labels=DIGITS,
        draw=lambda draws, length: draws.integers(3, length),
        solve=cycle_navigation,
    ),
    "modular_arithmetic": Language(
        level="regular",
        symbols=(*DIGITS, "+", "-", "*", "unused"),
        labels=DIGITS,
        draw=draw_arithmetic,
        solve=modular_arithmetic,
    ),
}
