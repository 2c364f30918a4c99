"""Arithmetic on a graph of assignments: each variable's value modulo a prime, in larger graphs.

The first assignments give leaves a number, the others combine one to three variables that stand
before them, from left to right. The value of a variable is the label at its name behind ``=``:

>>> row = DagArithmetic(leaves=2).row([("x1", [7]), ("x0", [20]), ("x2", ["x1", "+", "x0"])])
>>> print(*row.source)
7 = x1 , 20 = x0 , x1 + x0 = x2
>>> row.target[2], row.target[6], row.target[-1]
('7', '20', '4')
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
from tasks.base.task import UNSCORED, Example

MOST_PARENTS = 3
OPERATORS = ("+", "*", "-")


@dataclass(frozen=True, kw_only=True)
class DagArithmetic(LengthTask):
    """Values of all variables of a graph of assignments, with more nodes than trained."""

    name: ClassVar[str] = "dag_arithmetic"
    difficulty_name: ClassVar[str] = "nodes"
    shortest: ClassVar[int] = 2
    about: ClassVar[About] = About(
        family="trees and graphs",
        hard="values that wait for one another, as deep as the graph",
        source="Awni00/algorithmic-generalization-transformer-architectures 52dd950d",
        published=(
            "setting: modulo 23, sums of 1 to 3 variables, up to 32 nodes in train, 128 in "
            "the test (repository)",
        ),
    )

    modulus: int = 23
    """Values are 0 … modulus − 1."""
    operators: str = "+"
    """Operators that occur, of + * -."""
    leaves: int = 6
    """Variables that are given a number; fewer where there are not so many nodes."""
    train_lengths: tuple[int, int] = (4, 16)
    """Fewest and most nodes in train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [20, 24, 32, 48, 64])
    """Nodes of longer."""
    names: int = 128
    """Names of variables to choose from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "modulus", 2 <= self.modulus <= 1000, "2 to 1000")
        known = bool(self.operators) and not set(self.operators) - set(OPERATORS)
        require(self, "operators", known, f"some of {' '.join(OPERATORS)}, without spaces")
        require(self, "leaves", self.leaves >= 1, "at least 1")
        longest = max(self.train_lengths[1], *self.test_lengths, *self.valid_lengths)
        require(self, "names", self.names >= longest, f"at least {longest}, the largest graph")

    def symbols(self) -> tuple[str, ...]:
        """Return numbers, operators, ``=``, the comma and names."""
        names = (f"x{number}" for number in range(self.names))
        return (*self.labels(), *OPERATORS, "=", ",", *names)

    def labels(self) -> tuple[str, ...]:
        """Return the values."""
        return tuple(map(str, range(self.modulus)))

    def source_length(self, length: int) -> int:
        """Return the most tokens of a row."""
        return length * (2 * MOST_PARENTS + 2)

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return graphs of ``length`` nodes."""
        count, rows = len(draws), np.arange(len(draws))
        names = draws.permutations(self.names, length)
        leaves = min(self.leaves, length - 1)
        chosen = np.array([OPERATORS.index(operator) for operator in self.operators])
        base = self.modulus
        equals, comma, first_name = base + 3, base + 4, base + 5
        values = np.zeros((count, length), dtype=np.int64)
        values[:, :leaves] = draws.integers(self.modulus, leaves)
        # (N, n, 8): up to three parents with operators between, =, the name, a comma
        source = np.full((count, length, 2 * MOST_PARENTS + 2), NO_LABEL)
        source[:, :leaves, 0] = values[:, :leaves]
        for node in range(leaves, length):
            most = min(MOST_PARENTS, node)
            parents = draws.branch(f"parents {node}").permutations(node, most)
            number = 1 + draws.integers(most)
            operators = chosen[draws.integers(len(chosen), most)]
            value = values[rows, parents[:, 0]]
            source[:, node, 0] = first_name + names[rows, parents[:, 0]]
            for place in range(1, most):
                used = place < number
                other, operator = values[rows, parents[:, place]], operators[:, place]
                joined = np.where(operator == 1, value * other, value + other)
                joined = np.where(operator == 2, value - other, joined) % self.modulus
                value = np.where(used, joined, value)
                at = 2 * place - 1
                source[:, node, at] = np.where(used, base + operator, NO_LABEL)
                name = first_name + names[rows, parents[:, place]]
                source[:, node, at + 1] = np.where(used, name, NO_LABEL)
            values[:, node] = value
        source[:, :, -3], source[:, :, -2] = equals, first_name + names
        source[:, :-1, -1] = comma
        target = np.full_like(source, NO_LABEL)
        target[:, :, -2] = values
        return _closed_up(source.reshape(count, -1), target.reshape(count, -1))

    def row(self, assignments: Sequence[tuple[str, Sequence[str | int]]]) -> Example:
        """Return the row of one graph, given as names with what they are assigned.

        Raises:
            KeyError: a variable is used before it has a value.
        """
        values: dict[str, int] = {}
        source: list[str] = []
        target: list[str] = []
        for number, (name, terms) in enumerate(assignments):
            read = [term if isinstance(term, int) else values.get(term) for term in terms[::2]]
            value = read[0]
            for operator, other in zip(terms[1::2], read[1:], strict=True):
                if value is None or other is None:
                    raise KeyError(name)
                joined = {"+": value + other, "*": value * other, "-": value - other}
                value = joined[str(operator)]
            if value is None:
                raise KeyError(name)
            values[name] = value % self.modulus
            words = [*([","] if number else []), *map(str, terms), "=", name]
            source += words
            target += [UNSCORED] * (len(words) - 1) + [str(values[name])]
        return Example(tuple(source), tuple(target), difficulty=float(len(assignments)))


def _closed_up(source: np.ndarray, target: np.ndarray) -> Rows:
    """Return rows (N, T) without the places that hold no token."""
    order = np.argsort(source < 0, axis=1, kind="stable")
    width = int((source >= 0).sum(axis=1).max())
    return Rows(
        np.take_along_axis(source, order, axis=1)[:, :width],
        np.take_along_axis(target, order, axis=1)[:, :width],
    )
