"""Propositional inference: how do two formulas relate, for more operators than trained?

Seven relations, tested in this order over the 64 assignments of six variables: ``=`` equal, ``<``
the left one implies the right one, ``>`` the reverse, ``^`` one or the other but never both, ``|``
never both, ``v`` one of them always, ``#`` none of these.

>>> relation("( d ( or f ) )", "( f ( and a ) )")
'>'
>>> relation("( not c )", "c")
'^'

The official files are numbered by the operators of the longer side; number 12 holds 12 to 19. Train
has up to six, every tenth row of which is held out for ``valid``, as published.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, file_table, locate, read_lines
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask, Kind

COMMIT = "2a0d3a22fb70216993a7faf25de3515f42e10431"
REPOSITORY = f"https://raw.githubusercontent.com/yikangshen/Ordered-Memory/{COMMIT}"
FOLDER = "data/propositionallogic"
TRUE = 2**64 - 1
"""A formula as the 64 values that it has, one bit for each assignment."""
VARIABLES = {
    name: sum(1 << row for row in range(64) if row >> place & 1)
    for place, name in enumerate("abcdef")
}
OPERATORS = ("not", "and", "or")
BETWEEN = "|"
"""Token between the two formulas."""


def _read_data_files() -> dict[str, DataFile]:
    files = {}
    for sha256, name, rows in file_table("logical_inference_sha256.txt"):
        files[name] = DataFile(
            path=f"logical_inference/{name}",
            url=f"{REPOSITORY}/{FOLDER}/{name}",
            sha256=sha256,
            rows=int(rows),
        )
    return files


DATA_FILES: dict[str, DataFile] = _read_data_files()
"""Official files by name."""


def truth(formula: str) -> int:
    """Return the values of a formula as a number of 64 bits.

    Raises:
        ValueError: no formula.
    """
    stack: list[int | str] = []
    for token in formula.split():
        if token in VARIABLES:
            stack.append(VARIABLES[token])
        elif token in _OPENING:
            stack.append(token)
        elif token != ")" or not _close(stack):
            raise ValueError(f"{formula!r}: expected a formula")
    if len(stack) != 1 or not isinstance(stack[0], int):
        raise ValueError(f"{formula!r}: expected a formula")
    return stack[0]


_OPENING = frozenset(("(", *OPERATORS))


def _close(stack: list[int | str]) -> bool:
    """Reduce what a closing bracket ends: ``( x``, ``( not x`` or ``( x ( and y``; false: nothing.

    Of the last one the inner bracket closes: what it joins waits for the outer one.
    """
    if len(stack) < 2 or not isinstance(value := stack.pop(), int):
        return False
    operator = stack.pop()
    if operator == "(":
        stack.append(value)
        return True
    if operator == "not":
        if not stack or stack.pop() != "(":
            return False
        stack.append(TRUE ^ value)
        return True
    if len(stack) < 3 or stack[-1] != "(" or stack[-3] != "(":
        return False
    left = stack[-2]
    if not isinstance(left, int) or operator not in ("and", "or"):
        return False
    stack[-2:] = [left & value if operator == "and" else left | value]
    return True


def relation(left: str, right: str) -> str:
    """Return how two formulas relate."""
    return relation_of(truth(left), truth(right))


def relation_of(one: int, other: int) -> str:
    """Return how two formulas with these truth tables relate."""
    if one == other:
        return "="
    if not one & ~other:
        return "<"
    if not other & ~one:
        return ">"
    never, always = not one & other, (one | other) == TRUE
    return {(True, True): "^", (True, False): "|", (False, True): "v"}.get((never, always), "#")


def operators(formula: str) -> int:
    """Return how many operators a formula has."""
    return sum(token in OPERATORS for token in formula.split())


@dataclass(frozen=True, kw_only=True)
class LogicalInference(ExampleTask):
    """Relations of propositional formulas, from the official files."""

    name: ClassVar[str] = "logical_inference"
    difficulty_name: ClassVar[str] = "operators of the longer formula"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid",)
    in_distribution_split = "iid"
    about: ClassVar[About] = About(
        family="trees and graphs",
        hard="nested formulas of twice as many operators as in train; brackets are given",
        source="Bowman et al. 2015; files of yikangshen/Ordered-Memory 2a0d3a22",
        published=(
            "protocol: train on up to 6 operators, 135,529 rows; score each of 7 to 12 "
            "(repository)",
            "majority: # in about 52 % (measured)",
        ),
        fetch="python -m tasks.fetch logical_inference",
    )

    train_operators: int = 6
    """Most operators of train, valid and iid, 1 to 6."""

    test_operators: list[int] = field(default_factory=lambda: [7, 8, 9, 10, 11, 12])
    """Numbers of operators in more_operators."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "train_operators", 1 <= self.train_operators <= 6, "1 to 6")
        fits = self.test_operators and all(7 <= number <= 12 for number in self.test_operators)
        require(self, "test_operators", bool(fits), "one or more from 7 to 12")

    @property
    def kind(self) -> Kind:
        """Return classification."""
        return "classification"

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, valid, iid and more_operators.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        few = range(self.train_operators + 1)
        more = self.test_operators
        train = [row for n in few for row in read_file(f"train{n}")]
        return {
            "train": [row for number, row in enumerate(train, 1) if number % 10],
            "valid": train[9::10],
            "iid": [row for n in few for row in read_file(f"test{n}")],
            "more_operators": [row for n in more for row in read_file(f"test{n}")],
        }


@functools.lru_cache(maxsize=32)
def read_file(name: str) -> tuple[Example, ...]:
    """Return the rows of an official file.

    Raises:
        DataMissing, DataDamaged: it is not there, or not the published one.
    """
    file = DATA_FILES[name]
    number = name.removeprefix("train").removeprefix("test")
    rows = []
    for line in read_lines(file):
        parts = line.split("\t")
        if len(parts) != 3:
            raise DataDamaged(f"{locate(file)}: expected a label and two formulas, got {line!r}")
        label, left, right = parts
        rows.append(
            Example(
                source=(*left.split(), BETWEEN, *right.split()),
                target=(label,),
                category=f"{number} operators",
                difficulty=float(number),
            )
        )
    return tuple(rows)


LABELS: Mapping[str, str] = {
    "=": "equal",
    "<": "implies",
    ">": "is implied",
    "^": "one of them",
    "|": "not both",
    "v": "at least one",
    "#": "none of these",
}
"""What each label says."""
