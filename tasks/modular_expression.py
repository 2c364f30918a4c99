"""Expressions modulo a prime, with brackets only where they are needed, of many operations.

The usual precedence holds, equal operators go from left to right, and ``/`` multiplies by the
inverse:

>>> evaluate("1 - ( 0 - 2 )".split(), modulus=11)
3
>>> evaluate("5 / 3 - ( 10 + 4 ) * 8".split(), modulus=11)
7

An expression grows from its value: a random number in it is replaced by two numbers with an
operator between them that are worth as much, as often as there are operations. So all values are
equally likely, and brackets nest at random places. The value is read at ``=``.
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

PLUS, MINUS, TIMES, OVER = range(4)
OPERATORS = ("+", "-", "*", "/")
LEAF = -1


def evaluate(tokens: Sequence[str], *, modulus: int) -> int:
    """Return the value of an expression modulo a prime.

    Raises:
        ValueError: no expression, or a division by 0.
    """
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1]

    def factor() -> int:
        if peek() == "(":
            take()
            value = total()
            if peek() != ")":
                raise ValueError(f"{' '.join(tokens)!r}: a bracket is not closed")
            take()
            return value
        if not peek().isdigit():
            raise ValueError(f"{' '.join(tokens)!r}: expected a number at token {position + 1}")
        return int(take()) % modulus

    def product() -> int:
        value = factor()
        while peek() in ("*", "/"):
            divides, other = take() == "/", factor()
            value = value * (pow(other, -1, modulus) if divides else other) % modulus
        return value

    def total() -> int:
        value = product()
        while peek() in ("+", "-"):
            sign = 1 if take() == "+" else -1
            value = (value + sign * product()) % modulus
        return value

    value = total()
    if position != len(tokens):
        raise ValueError(f"{' '.join(tokens)!r}: unexpected {peek()!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class ModularExpression(LengthTask):
    """The value of an expression modulo a prime, of more operations than trained."""

    name: ClassVar[str] = "modular_expression"
    difficulty_name: ClassVar[str] = "operations"
    about: ClassVar[About] = About(
        family="trees and graphs",
        hard="finding the order of operations, and as many of them as the tree is deep",
        source="arXiv 2505.19245; kevin671/cot-vs-loop 783fa900",
        published=(
            "setting: 16 to 32 operations, modulus 3 (README) or 11 (code), a million rows, "
            "2 layers looped 8 or 16 times (repository)",
        ),
    )

    modulus: int = 11
    """A prime from 2 to 97."""
    train_lengths: tuple[int, int] = (1, 16)
    """Fewest and most operations in train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [18, 20, 24, 32])
    """Operations of longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number = self.modulus
        is_prime = 2 <= number <= 97 and all(number % n for n in range(2, number))
        require(self, "modulus", is_prime, "a prime from 2 to 97, for there are inverses")

    def symbols(self) -> tuple[str, ...]:
        """Return the numbers, the operators, the brackets, and where the value is read."""
        return (*self.labels(), *OPERATORS, "(", ")", "=")

    def labels(self) -> tuple[str, ...]:
        """Return the values."""
        return tuple(map(str, range(self.modulus)))

    def source_length(self, length: int) -> int:
        """Return the most tokens of a row."""
        return 4 * length + 2

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return expressions of ``length`` operations."""
        count, rows = len(draws), np.arange(len(draws))
        # Nodes in the order in which they arise: step t makes 2t + 1 and 2t + 2 of one of them.
        shape = (count, 2 * length + 1)
        values = np.zeros(shape, dtype=np.int64)
        operators = np.full(shape, LEAF)
        bracketed = np.zeros(shape, dtype=bool)
        values[:, 0] = draws.integers(self.modulus)
        grown, leaves = np.empty((2, count, length + 1), dtype=np.int64)
        leaves[:, 0] = 0
        chosen = draws.integers(4, length)
        places = draws.integers(np.arange(1, length + 1), length)
        first, second = draws.integers(self.modulus, 2, length).transpose(1, 0, 2)
        parents, is_right = np.full(shape, -1), np.zeros(shape, dtype=bool)
        for step in range(length):
            place, operator = places[:, step], chosen[:, step]
            node = leaves[rows, place]
            grown[:, step] = node
            left, right = 2 * step + 1, 2 * step + 2
            leaves[rows, place], leaves[:, step + 1] = left, right
            operators[rows, node] = operator
            values[:, left], values[:, right] = self._operands(
                operator, values[rows, node], first[:, step], second[:, step]
            )
            parents[:, left] = parents[:, right] = node
            is_right[:, right] = True
            outer = np.where(parents[rows, node] < 0, LEAF, operators[rows, parents[rows, node]])
            looser = (operator <= MINUS) & (outer >= TIMES)
            same = (outer >= 0) & (operator // 2 == outer // 2) & is_right[rows, node]
            turned = same & ((outer == MINUS) | (outer == OVER))
            bracketed[rows, node] = looser | turned
        return self._written(values, operators, bracketed, grown[:, :length])

    def _operands(
        self, operator: np.ndarray, value: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return two numbers that an operator joins to a value; the last two arguments are random.

        A factor is 0 only if the value is, and a divisor never.
        """
        modulus = self.modulus
        inverse = np.array([0, *(pow(n, -1, modulus) for n in range(1, modulus))])
        some = 1 + second % (modulus - 1) if modulus > 2 else np.ones_like(second)
        factor = np.where((first == 0) & (value != 0), some, first)
        other = np.where(factor == 0, second, value * inverse[factor] % modulus)
        options = (operator == PLUS, operator == MINUS, operator == TIMES)
        left = np.select(options, [first, first, factor], value * some % modulus)
        right = np.select(
            options, [(value - first) % modulus, (first - value) % modulus, other], some
        )
        return left, right

    def _written(
        self, values: np.ndarray, operators: np.ndarray, bracketed: np.ndarray, grown: np.ndarray
    ) -> Rows:
        """Return rows of trees; ``grown`` (N, n) is the node that each step divided."""
        count, length = grown.shape
        rows, base = np.arange(count), self.modulus
        opening, closing, equals = base + 4, base + 5, base + 6
        widths = np.ones_like(values)
        for step in reversed(range(length)):
            node = grown[:, step]
            inner = widths[:, 2 * step + 1] + 1 + widths[:, 2 * step + 2]
            widths[rows, node] = inner + 2 * bracketed[rows, node]
        source = np.full((count, int(widths[:, 0].max()) + 1), NO_LABEL)
        starts = np.zeros_like(values)
        for step in range(length):
            node = grown[:, step]
            start, bracket = starts[rows, node], bracketed[rows, node]
            some = rows[bracket]
            source[some, start[bracket]] = opening
            source[some, start[bracket] + widths[some, node[bracket]] - 1] = closing
            starts[:, 2 * step + 1] = start + bracket
            sign = start + bracket + widths[:, 2 * step + 1]
            source[rows, sign] = base + operators[rows, node]
            starts[:, 2 * step + 2] = sign + 1
        row, node = np.nonzero(operators == LEAF)
        source[row, starts[row, node]] = values[row, node]
        source[rows, widths[:, 0]] = equals
        target = np.full_like(source, NO_LABEL)
        target[rows, widths[:, 0]] = values[:, 0]
        return Rows(source, target)
