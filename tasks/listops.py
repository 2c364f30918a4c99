"""Nested lists of operators over digits: what is the outermost worth, nested deeper than trained?

``[MIN``, ``[MAX``, ``[MED`` (the median, of an even number the whole part of the mean of the middle
two) and ``[SM`` (the sum modulo 10) take two to five arguments:

>>> evaluate("[MED 9 [SM 8 5 ] 2 7 ]".split())
Node(value=5, nesting=3, dependency=3)

Dependency depth counts only what the result depends on: one more than that of the argument that is
chosen (the first minimum or maximum, the middle ones), or of the deepest one of a sum. With
``distribution: balanced`` rows are spread equally over it, as in the Neural Data Router paper: deep
nesting that nobody needs does not count as deep. Unlike there no row is in two splits.

``original`` draws as the generator of the published data: an argument is a digit with probability
0.75. Train then has rows of up to ``train_tokens``, and the tests, longer ones, are cut out of the
official file ``test_d20s``; that of train was never found, so train is drawn here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from tasks.base.about import About
from tasks.base.data_files import DataFile, read_lines
from tasks.base.generated import check_range, equal_shares
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask, Kind

COMMIT = "0e24a35c7be00e9f67814b0c846c3095cfe7632b"
REPOSITORY = f"https://raw.githubusercontent.com/nyu-mll/spinn/{COMMIT}"
DATA_FILES: dict[str, DataFile] = {
    "test": DataFile(
        path="listops/test_d20s.tsv",
        url=f"{REPOSITORY}/python/spinn/data/listops/test_d20s.tsv",
        sha256="71335416e6896e8dd8dc69281c8ed9b37316382d05d3705d660461564e843840",
        rows=10_000,
    ),
    "test_d8": DataFile(
        path="listops/test_d8.tsv",
        url=f"{REPOSITORY}/python/spinn/data/listops/test_d8.tsv",
        sha256="881061477e62e9941332825bf417e25a13de50a38bf74a893e23f4ef05b18087",
        rows=10_000,
        by_default=False,
    ),
}
OPERATORS = ("MIN", "MAX", "MED", "SM")
KNOWN = (*OPERATORS, "FIRST", "LAST")
"""Operators that are evaluated; the last two occur in other official files."""
MOST_ARGUMENTS = 5
MOST_TOKENS = 50
"""Longest balanced row; a bracket and its operator count three, as upstream."""
BUCKETS = ((101, 200), (201, 300), (301, 400), (401, 500), (501, 1000))
"""Fewest and most tokens of a row in each category of the official test."""


class Node(NamedTuple):
    """An expression's value, and how deep it is; a digit has depth 1."""

    value: int
    nesting: int
    dependency: int


def apply(operator: str, arguments: Sequence[Node]) -> Node:
    """Return the node of an operator over its arguments.

    Raises:
        KeyError: no such operator.
    """
    values = [node.value for node in arguments]
    order = sorted(range(len(values)), key=values.__getitem__)
    middle = len(values) // 2
    chosen = {
        "MIN": [order[0]],
        "MAX": [values.index(max(values))],
        "MED": [order[middle]] if len(values) % 2 else order[middle - 1 : middle + 1],
        "SM": order,
        "FIRST": [0],
        "LAST": [len(values) - 1],
    }[operator]
    value = sum(values[n] for n in chosen)
    return Node(
        value % 10 if operator == "SM" else value // len(chosen),
        1 + max(node.nesting for node in arguments),
        1 + max(arguments[n].dependency for n in chosen),
    )


def evaluate(tokens: Sequence[str]) -> Node:
    """Return the node of an expression.

    Raises:
        ValueError: no expression.
    """
    stack: list[Node | str] = []
    for token in tokens:
        if token.isdigit() and len(token) == 1:
            stack.append(Node(int(token), 1, 1))
        elif token.removeprefix("[") in KNOWN and token.startswith("["):
            stack.append(token[1:])
        elif token == "]":
            arguments: list[Node] = []
            while stack and isinstance(stack[-1], Node):
                arguments.append(stack.pop())  # type: ignore[arg-type]
            if not stack or not arguments:
                raise ValueError(f"{' '.join(tokens)!r}: a bracket closes nothing")
            stack.append(apply(str(stack.pop()), arguments[::-1]))
        else:
            raise ValueError(f"{' '.join(tokens)!r}: unexpected {token!r}")
    if len(stack) != 1 or not isinstance(stack[0], Node):
        raise ValueError(f"{' '.join(tokens)!r}: expected one expression")
    return stack[0]


class Expression(NamedTuple):
    """Tokens with their node."""

    tokens: tuple[str, ...]
    node: Node

    @property
    def cost(self) -> int:
        """Return the length as upstream counts it."""
        return len(self.tokens) + sum(token == "]" for token in self.tokens)


@dataclass(frozen=True, kw_only=True)
class ListOps(ExampleTask):
    """Values of nested list operators; the defaults are the Neural Data Router's depths."""

    name: ClassVar[str] = "listops"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid_deeper",)
    in_distribution_split = "iid"
    about: ClassVar[About] = About(
        family="trees and graphs",
        hard="a tree that has to be found in the brackets, and evaluated from its leaves",
        source="arXiv 1804.06028 and 2110.07732; ndr da20530d, nyu-mll/spinn 0e24a35c",
        published=(
            "depths 7–8 of the paper (code: 8–9), balanced: LSTM .71, Transformer .74, with "
            "relative positions .79, Neural Data Router .99 (ICLR submission)",
        ),
        fetch="none for balanced; original: python -m tasks.fetch listops",
    )

    distribution: Literal["balanced", "original"] = "balanced"
    """balanced: by dependency depth. original: as published, scored on the official test."""
    train_depths: tuple[int, int] = (2, 6)
    """Least and greatest dependency depth of train and iid, where balanced."""
    valid_depths: tuple[int, int] = (7, 7)
    """Dependency depths of valid_deeper, where balanced."""
    test_depths: tuple[int, int] = (8, 9)
    """Dependency depths of deeper, where balanced."""
    train_tokens: int = 100
    """Most tokens of a row of train and iid, where original."""
    train_rows: int = 50_000
    """Rows of train; published are 1,000,000."""
    iid_rows: int = 1000
    """Rows of iid."""
    valid_rows: int = 500
    """Rows of valid_deeper, where balanced; 0 leaves it out."""
    test_rows: int = 1000
    """Rows of deeper, where balanced."""
    seed: int = 0
    """Seed of the generated rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "train_depths", minimum=2)
        require(self, "valid_rows", self.valid_rows >= 0, "at least 0")
        if self.valid_rows:
            check_range(self, "valid_depths", minimum=2, above="train_depths")
        below = "valid_depths" if self.valid_rows else "train_depths"
        check_range(self, "test_depths", minimum=2, above=below)
        for name in ("train_rows", "iid_rows", "test_rows"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "train_tokens", 4 <= self.train_tokens <= 100, "4 to 100")

    @property
    def kind(self) -> Kind:
        """Return classification."""
        return "classification"

    @property
    def difficulty_name(self) -> str:  # type: ignore[override]
        """Return what rows are ordered by."""
        return "dependency depth" if self.distribution == "balanced" else "tokens, up to"

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, valid_deeper where there is one, iid, and deeper or longer.

        Raises:
            DataMissing, DataDamaged: the official test is not there, or not the published one.
        """
        taken: set[tuple[str, ...]] = set()
        if self.distribution == "original":
            longer = official_rows()
            taken |= {row.source for row in longer}
            iid = self._original("iid", self.iid_rows, taken)
            return {
                "train": self._original("train", self.train_rows, taken),
                "iid": iid,
                "longer": longer,
            }
        deeper = self._balanced("deeper", self.test_rows, self.test_depths, taken)
        valid = self._balanced("valid_deeper", self.valid_rows, self.valid_depths, taken)
        iid = self._balanced("iid", self.iid_rows, self.train_depths, taken)
        train = self._balanced("train", self.train_rows, self.train_depths, taken)
        splits = {"train": train, "valid_deeper": valid, "iid": iid, "deeper": deeper}
        return {name: rows for name, rows in splits.items() if rows}

    def _balanced(
        self, split: str, rows: int, depths: tuple[int, int], taken: set[tuple[str, ...]]
    ) -> list[Example]:
        """Draw distinct rows, equally many of each dependency depth."""
        generator = random.Random(f"listops {self.seed} {split}")
        levels = range(depths[0], depths[1] + 1)
        found: list[Expression] = []
        for depth, share in zip(levels, equal_shares(rows, [rows] * len(levels)), strict=True):
            left = share
            while left:
                row = _of_depth(generator, depth)
                if row is None or row.cost > MOST_TOKENS or row.tokens in taken:
                    continue
                taken.add(row.tokens)
                found.append(row)
                left -= 1
        return [_example(row, float(row.node.dependency)) for row in found]

    def _original(self, split: str, rows: int, taken: set[tuple[str, ...]]) -> list[Example]:
        """Draw distinct rows as the published generator does, of up to ``train_tokens``."""
        generator = random.Random(f"listops original {self.seed} {split}")
        found: list[Expression] = []
        while len(found) < rows:
            row = _tree(generator, 20, operator_share=0.25, most_arguments=5)
            if 1 < len(row.tokens) <= self.train_tokens and row.tokens not in taken:
                taken.add(row.tokens)
                found.append(row)
        return [_example(row, float(self.train_tokens)) for row in found]


def _tree(
    generator: random.Random, depth: int, *, operator_share: float, most_arguments: int
) -> Expression:
    """Draw an expression of at most a nesting depth."""
    if depth <= 1 or generator.random() >= operator_share:
        digit = int(10 * generator.random())
        return Expression((str(digit),), Node(digit, 1, 1))
    count = 2 + int((most_arguments - 1) * generator.random())
    arguments = [
        _tree(generator, depth - 1, operator_share=operator_share, most_arguments=most_arguments)
        for _ in range(count)
    ]
    return _joined(generator, arguments)


def _joined(generator: random.Random, arguments: Sequence[Expression]) -> Expression:
    operator = OPERATORS[int(4 * generator.random())]
    tokens = (f"[{operator}", *(token for part in arguments for token in part.tokens), "]")
    return Expression(tokens, apply(operator, [part.node for part in arguments]))


def _of_depth(generator: random.Random, depth: int) -> Expression | None:
    """Draw an expression and wrap it in operators until it depends on that many; None: too long.

    Each wrapping puts what there is among fresh arguments, not at their end, as upstream; one that
    is too long, or whose operator does not choose it, is drawn again. Upstream draws whole trees
    until one fits, which takes very long for deep ones: there, fresh arguments are kept small here.
    """
    room = MOST_TOKENS / depth  # of a level

    def fresh(most: int) -> Expression:
        share = 0.3 if most > 2 and room > 7 else 0.1
        return _tree(generator, most, operator_share=share, most_arguments=MOST_ARGUMENTS)

    found, misses = fresh(min(depth, 4)), 0
    while found.node.dependency < depth:
        count = 1 + int((3 if room > 7 else 2) * generator.random())
        arguments = [fresh(min(depth - 1, 3)) for _ in range(count)]
        arguments.insert(int(len(arguments) * generator.random()), found)
        wrapped = _joined(generator, arguments)
        fits = wrapped.cost <= MOST_TOKENS
        if fits and found.node.dependency < wrapped.node.dependency <= depth:
            found = wrapped
        else:
            misses += 1
        if misses > 40:
            return None
    return found if found.node.dependency == depth else None


def _example(row: Expression, difficulty: float) -> Example:
    return Example(
        source=row.tokens,
        target=(str(row.node.value),),
        category=f"depth {row.node.dependency}",
        difficulty=difficulty,
    )


def official_rows(
    keep: Callable[[int], bool] = lambda length: length > 100, name: str = "test"
) -> list[Example]:
    """Return the rows of an official test whose length is to be kept.

    Raises:
        DataMissing, DataDamaged: the file is not there, or not the published one.
    """
    rows = []
    for line in read_lines(DATA_FILES[name]):
        label, _, text = line.partition("\t")
        tokens = tuple(token for token in text.split() if token not in ("(", ")"))
        if not keep(len(tokens)):
            continue
        bucket = next((b for b in BUCKETS if b[0] <= len(tokens) <= b[1]), None)
        kind = "up to 100 tokens" if bucket is None else f"{bucket[0]} to {bucket[1]} tokens"
        rows.append(Example(tokens, (label,), kind, float(bucket[1] if bucket else 100)))
    return rows
