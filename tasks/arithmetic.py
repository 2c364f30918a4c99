"""Nested modular arithmetic: the value of a bracketed expression, on deeper nesting than trained.

Every operation is in brackets, every operand is a digit or another operation, and one character is
one token. The answer is the value modulo ``modulus``:

>>> evaluate("(3+9)")
2
>>> evaluate("((3+9)*(4*(1+6)))", modulus=10)
6
>>> nesting_depth("((3+9)*(4*(1+6)))")
3
>>> steps("((3+9)*(4*(1+6)))")
[2, 7, 8, 6]

Depth counts nested operations, as the Neural Data Router paper does; its generator (ndr, commit
da20530d, "simple arithmetic") counts the digits as a level of their own, so its 8 is a 7 here.
As in that generator, all expressions of depth 1 are in train, the other training rows are
spread equally over their depths, an operand is an operation with probability ``branching``, and an
expression that falls short of its depth becomes one operand of a new operation until it reaches it.
Unlike there, no expression is in two splits (upstream removes none), each is grown to its own depth
(upstream grows to the least depth of the split and waits for deeper ones by chance), the grown one
may stand on either side (``grow_left``; upstream means to swap, but never does), and labels can be
balanced.
Without balancing 26-30 % of the answers modulo 10 are 0, since one zero factor is enough: the
majority baseline shows that skew.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from tasks.base.about import About
from tasks.base.generated import check_range, equal_shares
from tasks.base.options import OptionError, require
from tasks.base.task import Example, ExampleTask, Intermediate, Kind

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
}

_MOST_MISSES = 10_000
"""Useless draws in a row (taken, too long, or of a label that is full) after which none is left."""


class Expression(NamedTuple):
    """A bracketed expression with its value and depth; a digit has depth 0."""

    text: str
    value: int
    depth: int


def steps(text: str, *, modulus: int = 10) -> list[int]:
    """Return the value of every operation of ``text`` in the order in which brackets close.

    Raises:
        ValueError: ``text`` is not a bracketed expression.
    """
    stack: list[str | int] = []
    values: list[int] = []
    for character in text:
        if character.isdigit():
            stack.append(int(character))
        elif character == "(" or character in OPERATORS:
            stack.append(character)
        else:
            match stack[-4:]:
                case ["(", int(left), str(operator), int(right)] if (
                    character == ")" and operator in OPERATORS
                ):
                    values.append(OPERATORS[operator](left, right) % modulus)
                    stack[-4:] = [values[-1]]
                case _:
                    raise ValueError(f"{text!r}: expected a bracketed expression as (1+(2*3))")
    if len(stack) != 1 or not values:
        raise ValueError(f"{text!r}: expected a bracketed expression as (1+(2*3))")
    return values


def evaluate(text: str, *, modulus: int = 10) -> int:
    """Return the value of a bracketed expression modulo ``modulus``."""
    return steps(text, modulus=modulus)[-1]


def nesting_depth(text: str) -> int:
    """Return the number of operations on the longest path from the outermost to a digit."""
    opened = itertools.accumulate((c == "(") - (c == ")") for c in text)
    return max(opened, default=0)


@dataclass(frozen=True, kw_only=True)
class Arithmetic(ExampleTask):
    """Nested modular arithmetic; the defaults are the Neural Data Router's sizes and depths."""

    name: ClassVar[str] = "arithmetic"
    about: ClassVar[About] = About(
        family="trees and graphs",
        hard="brackets nested deeper than in train",
        source="arXiv 2110.07732; robertcsordas/ndr da20530d",
        published=(
            "depths 7–8 after 200k steps (ICLR submission): LSTM .74, Transformer .47, with "
            "relative positions .77, Neural Data Router .98",
        ),
    )
    difficulty_name: ClassVar[str] = "nesting depth"
    in_distribution_split = "iid"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid_deeper",)

    modulus: int = 10
    """Answers and digits are 0 … modulus − 1; 2 to 10."""
    operators: str = "+*"
    """Operators that occur, of + - *."""
    train_depths: tuple[int, int] = (1, 5)
    """First and last depth in train and iid; of depth 1 every expression is in train, once."""
    valid_depths: tuple[int, int] = (6, 6)
    """Depths of valid_deeper."""
    test_depths: tuple[int, int] = (7, 8)
    """Depths of deeper."""
    train_rows: int = 100_000
    """Training rows above depth 1; they are drawn, so a short expression may come twice."""
    iid_rows: int = 1000
    """Rows of iid."""
    valid_rows: int = 1000
    """Rows of valid_deeper; 0 leaves the split and valid_depths out."""
    test_rows: int = 1000
    """Rows of deeper."""
    branching: float = 0.2
    """Probability that an operand is an operation, in train and iid."""
    branching_deeper: float = 0.3
    """The same in valid_deeper and deeper."""
    grow_left: float = 0.5
    """Probability that a grown expression is the left operand; the published generator has 0."""
    max_length: int = 50
    """Longest expression in characters."""
    balance: Literal["none", "labels"] = "none"
    """labels: every answer equally often at every depth above 1."""
    output: Literal["label", "answer", "steps"] = "label"
    """label: classification. answer: a sequence of that one token. steps: a sequence of every
    operation's value, in the order in which brackets close."""
    seed: int = 0
    """Seed of the generated rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "modulus", 2 <= self.modulus <= 10, "2 to 10, since a number is one digit")
        known = self.operators and not set(self.operators) - set(OPERATORS)
        require(self, "operators", bool(known), f"some of {' '.join(OPERATORS)}, without spaces")
        check_range(self, "train_depths", minimum=1)
        require(self, "train_depths", self.train_depths[1] > 1, "[first, last] with last >= 2")
        require(self, "valid_rows", self.valid_rows >= 0, "at least 0")
        if self.valid_rows:
            check_range(self, "valid_depths", minimum=1, above="train_depths")
        below = "valid_depths" if self.valid_rows else "train_depths"
        check_range(self, "test_depths", minimum=1, above=below)
        for rows in ("train_rows", "iid_rows", "test_rows"):
            require(self, rows, getattr(self, rows) >= 1, "at least 1")
        for probability in ("branching", "branching_deeper", "grow_left"):
            require(self, probability, 0 <= getattr(self, probability) <= 1, "from 0 to 1")
        shortest = 4 * self.test_depths[1] + 1
        require(self, "max_length", self.max_length >= shortest, f"at least {shortest}")

    @property
    def kind(self) -> Kind:
        """Return classification for ``output: label``, sequence-to-sequence for the others."""
        return "classification" if self.output == "label" else "sequence_to_sequence"

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, valid_deeper (if it has rows), iid and deeper, without overlap."""
        above_one = (max(2, self.train_depths[0]), self.train_depths[1])
        taken: set[str] = set()
        drawn = {
            name: self._draw(
                name, rows=rows, depths=depths, branching=branching, taken=taken, distinct=True
            )
            for name, rows, depths, branching in (
                ("valid_deeper", self.valid_rows, self.valid_depths, self.branching_deeper),
                ("iid", self.iid_rows, above_one, self.branching),
                ("deeper", self.test_rows, self.test_depths, self.branching_deeper),
            )
            if rows
        }
        train = self._all_of_depth_one() if self.train_depths[0] == 1 else []
        train += self._draw(
            "train",
            rows=self.train_rows,
            depths=above_one,
            branching=self.branching,
            taken=taken,
            distinct=False,
        )
        return {
            name: [self._example(expression) for expression in rows]
            for name, rows in {"train": train, **drawn}.items()
        }

    def _all_of_depth_one(self) -> list[Expression]:
        digits = range(self.modulus)
        return [
            self._operation(operator, Expression(str(a), a, 0), Expression(str(b), b, 0))
            for a, b, operator in itertools.product(digits, digits, self.operators)
        ]

    def _draw(
        self,
        split: str,
        *,
        rows: int,
        depths: tuple[int, int],
        branching: float,
        taken: set[str],
        distinct: bool,
    ) -> list[Expression]:
        """Draw expressions equally over ``depths``; ``distinct`` ones are added to ``taken``."""
        # One generator per split: a split stays the same when another one's size changes.
        generator = random.Random(f"arithmetic {self.seed} {split}")
        result: list[Expression] = []
        levels = range(depths[0], depths[1] + 1)
        for depth, share in zip(levels, equal_shares(rows, [rows] * len(levels)), strict=True):
            if self.balance == "labels":
                wanted = equal_shares(share, [share] * self.modulus)
            else:
                wanted = [share] * self.modulus
            misses = 0
            missing = share
            while missing:
                row = self._sample(generator, depth=depth, branching=branching)
                if len(row.text) > self.max_length or row.text in taken or not wanted[row.value]:
                    misses += 1
                    if misses > _MOST_MISSES:
                        raise OptionError(
                            "task.max_length",
                            self.max_length,
                            f"{missing} of {share} rows of depth {depth} not found for {split!r}; "
                            "ask for fewer, or raise it or task.modulus",
                        )
                    continue
                misses = 0
                missing -= 1
                wanted[row.value] -= 1
                result.append(row)
                if distinct:
                    taken.add(row.text)
        return result

    def _sample(self, generator: random.Random, *, depth: int, branching: float) -> Expression:
        """Draw one expression of exactly ``depth``."""

        def operand(limit: int) -> Expression:
            if limit > 0 and generator.random() < branching:
                return operation(limit)
            digit = int(generator.random() * self.modulus)
            return Expression(str(digit), digit, 0)

        def operation(limit: int) -> Expression:
            operator = self.operators[int(generator.random() * len(self.operators))]
            return self._operation(operator, operand(limit - 1), operand(limit - 1))

        tree = operation(depth)
        while tree.depth < depth:
            operator = self.operators[int(generator.random() * len(self.operators))]
            other = operand(depth - 1)
            pair = (tree, other) if generator.random() < self.grow_left else (other, tree)
            tree = self._operation(operator, *pair)
        return tree

    def _operation(self, operator: str, left: Expression, right: Expression) -> Expression:
        return Expression(
            f"({left.text}{operator}{right.text})",
            OPERATORS[operator](left.value, right.value) % self.modulus,
            1 + max(left.depth, right.depth),
        )

    def intermediate_values(self, example: Example) -> list[Intermediate]:
        """Return the value of every operation, in the order in which brackets close."""
        text = "".join(example.source)
        values = iter(steps(text, modulus=self.modulus))
        opened: list[int] = []
        found: list[Intermediate] = []
        for place, character in enumerate(text):
            if character == "(":
                opened.append(place)
            elif character == ")":
                key, name = text[opened.pop() : place + 1], f"operation {len(found) + 1}"
                found.append(Intermediate(name, str(next(values)), place, key))
        return found

    def _example(self, row: Expression) -> Example:
        answers = steps(row.text, modulus=self.modulus) if self.output == "steps" else [row.value]
        return Example(
            source=tuple(row.text),
            target=tuple(str(answer) for answer in answers),
            category=f"depth {row.depth}",
            difficulty=float(row.depth),
        )
