"""Propositional inference with formulas of our own, where the official files are not at hand.

Rows are drawn, not read: results are not those of ``logical_inference``, whose relations these are.

>>> from tasks.logical_inference import relation
>>> task = LogicalInferenceLike(train_rows=200, other_rows=50)
>>> sides = [" ".join(row.source).split(" | ") for row in task.split("more_operators")]
>>> all(relation(*pair) == row.target[0] for pair, row in zip(sides, task.split("more_operators")))
True

The longer formula of a row has a drawn number of operators; the other one has none in 46 of 100
rows, one in 28, and any number up to the longer one's in the rest, as measured on the official rows
of six operators. A pair has at most four of the six variables, no ``not`` stands right before
another, and no formula is always true or always false, as there. Half of the operators that may be
``not`` are; ``and`` and ``or`` are equally likely and join parts of any size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tasks.base.about import About
from tasks.base.drawing import Drawing
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask, Kind
from tasks.logical_inference import BETWEEN, TRUE, VARIABLES, relation_of

NEGATED = 0.5
"""Share of ``not`` among the operators that may be one."""
NONE, ONE = 0.46, 0.28
"""Shares of shorter formulas with no operator and with one."""
NAMES = 4
"""Most variables of a pair."""
TRIES = 200
"""Draws for each row that is wanted, after which there are too few of them."""


@dataclass(frozen=True, kw_only=True)
class LogicalInferenceLike(ExampleTask):
    """Relations of propositional formulas that are generated; not the official rows."""

    name: ClassVar[str] = "logical_inference_like"
    difficulty_name: ClassVar[str] = "operators of the longer formula"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid",)
    in_distribution_split = "iid"
    about: ClassVar[About] = About(
        family="trees and graphs",
        hard="nested formulas of twice as many operators as in train; brackets are given",
        source="generated like the rows of logical_inference, not these",
    )

    train_operators: int = 6
    """Most operators of train, valid and iid, each number from 1 drawn as often."""
    test_operators: list[int] = field(default_factory=lambda: [7, 8, 9, 10, 11, 12])
    """Numbers of operators in more_operators, each in as many rows."""
    train_rows: int = 50_000
    """Rows of train."""
    other_rows: int = 3_000
    """Rows of each other split; no row is in two."""
    seed: int = 0
    """Seed of the rows, the same for every model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "train_operators", 1 <= self.train_operators <= 40, "1 to 40")
        more = [self.train_operators < number <= 40 for number in self.test_operators]
        allowed = f"one or more from {self.train_operators + 1} to 40"
        require(self, "test_operators", bool(more) and all(more), allowed)
        for name in ("train_rows", "other_rows"):
            require(self, name, getattr(self, name) >= 1, "at least 1")

    @property
    def kind(self) -> Kind:
        """Return classification."""
        return "classification"

    def build_splits(self) -> dict[str, list[Example]]:
        """Draw train, valid, iid and more_operators.

        Raises:
            OptionError: there are not so many rows of so few operators.
        """
        few = range(1, self.train_operators + 1)
        taken: set[tuple[str, ...]] = set()
        sizes = {"train": self.train_rows, "valid": self.other_rows, "iid": self.other_rows}
        splits = {name: self._draw(name, size, few, taken) for name, size in sizes.items()}
        more = self._draw("more_operators", self.other_rows, self.test_operators, taken)
        return splits | {"more_operators": more}

    def _draw(
        self, name: str, size: int, numbers: Sequence[int], taken: set[tuple[str, ...]]
    ) -> list[Example]:
        generator = random.Random(f"logical_inference_like {self.seed} {name}")
        progress = Drawing(f"logical_inference_like, {name}", size)
        rows: list[Example] = []
        for _ in range(TRIES * size):
            if len(rows) == size:
                break
            count = numbers[int(generator.random() * len(numbers))]
            row = drawn_row(generator, count)
            if row is not None and row.source not in taken:
                taken.add(row.source)
                rows.append(row)
                progress.add()
        which = "train_rows" if name == "train" else "other_rows"
        require(self, which, len(rows) == size, f"at most {len(rows)}, as many as {name} can have")
        return rows


def drawn_row(generator: random.Random, count: int) -> Example | None:
    """Draw a pair of formulas, the longer one of so many operators; None: one says nothing."""
    names = generator.sample(sorted(VARIABLES), NAMES)
    coin = generator.random()
    fewer = 0 if coin < NONE else 1
    if coin >= NONE + ONE and count > 1:
        fewer = 2 + int(generator.random() * (count - 1))
    sides = []
    for operators in (count, fewer):
        tokens: list[str] = []
        sides.append((tokens, _formula(generator.random, operators, names, tokens)))
    if any(truth in (0, TRUE) for _, truth in sides):
        return None
    if generator.random() < 0.5:
        sides.reverse()
    (left, one), (right, other) = sides
    return Example(
        source=(*left, BETWEEN, *right),
        target=(relation_of(one, other),),
        category=f"{count} operators",
        difficulty=float(count),
    )


def _formula(
    random_share: Callable[[], float],
    count: int,
    names: Sequence[str],
    tokens: list[str],
    *,
    is_negated: bool = False,
) -> int:
    """Write a formula of so many operators behind the tokens, and return its truth table."""
    if not count:
        tokens.append(names[int(random_share() * len(names))])
        return VARIABLES[tokens[-1]]
    tokens.append("(")
    if not is_negated and random_share() < NEGATED:
        tokens.append("not")
        value = TRUE ^ _formula(random_share, count - 1, names, tokens, is_negated=True)
    else:
        before = int(random_share() * count)
        left = _formula(random_share, before, names, tokens)
        operator = "and" if random_share() < 0.5 else "or"
        tokens += ["(", operator]
        right = _formula(random_share, count - 1 - before, names, tokens)
        tokens.append(")")
        value = left & right if operator == "and" else left | right
    tokens.append(")")
    return value
