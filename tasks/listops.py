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

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from tasks.base.about import About
from tasks.base.data_files import DataFile, read_lines
from tasks.base.drawing import Drawing
from tasks.base.generated import check_range, equal_shares
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask, Intermediate, Kind

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


def choose(operator: str, values: Sequence[int]) -> tuple[int, Sequence[int]]:
    """Return what an operator makes of some values, and the places of those that it depends on.

    Raises:
        KeyError: no such operator.
    """
    if operator == "SM":
        return sum(values) % 10, range(len(values))
    if operator == "MED":
        order = sorted(range(len(values)), key=values.__getitem__)
        middle = len(values) // 2
        if len(values) % 2:
            return values[order[middle]], (order[middle],)
        left, right = order[middle - 1], order[middle]
        return (values[left] + values[right]) // 2, (left, right)
    if operator in ("MIN", "MAX"):
        value = min(values) if operator == "MIN" else max(values)
        return value, (values.index(value),)
    place = {"FIRST": 0, "LAST": len(values) - 1}[operator]
    return values[place], (place,)


def apply(operator: str, arguments: Sequence[Node]) -> Node:
    """Return the node of an operator over its arguments.

    Raises:
        KeyError: no such operator.
    """
    value, places = choose(operator, [node.value for node in arguments])
    return Node(
        value,
        1 + max(node.nesting for node in arguments),
        1 + max(arguments[place].dependency for place in places),
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
    """An expression that is being drawn; most are thrown away, so that its tokens come last."""

    value: int
    dependency: int
    cost: int
    """Tokens as upstream counts them, three for an operator and its bracket."""
    operator: str = ""
    """Name of the operator; of a digit nothing."""
    arguments: Sequence[Expression] = ()

    def tokens(self) -> tuple[str, ...]:
        """Return what is written."""
        found: list[str] = []
        self._write(found)
        return tuple(found)

    def _write(self, found: list[str]) -> None:
        if not self.operator:
            found.append(NUMERALS[self.value])
            return
        found.append(f"[{self.operator}")
        for part in self.arguments:
            if part.operator:
                part._write(found)
            else:
                found.append(NUMERALS[part.value])
        found.append("]")


NUMERALS = "0123456789"
DIGITS = [Expression(digit, 1, 1) for digit in range(10)]


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

    def intermediate_values(self, example: Example) -> list[Intermediate]:
        """Return the value of every operation, in the order in which brackets close."""
        opened: list[int] = []
        found: list[Intermediate] = []
        for place, token in enumerate(example.source):
            if token.startswith("["):
                opened.append(place)
            elif token == "]":
                part = example.source[opened.pop() : place + 1]
                name, value = f"operation {len(found) + 1}", str(evaluate(part).value)
                found.append(Intermediate(name, value, place, " ".join(part)))
        return found

    def _balanced(
        self, split: str, rows: int, depths: tuple[int, int], taken: set[tuple[str, ...]]
    ) -> list[Example]:
        """Draw distinct rows, equally many of each dependency depth."""
        generator = random.Random(f"listops {self.seed} {split}")
        levels = range(depths[0], depths[1] + 1)
        found: list[Example] = []
        progress = Drawing(f"listops, {split}", rows)
        for depth, share in zip(levels, equal_shares(rows, [rows] * len(levels)), strict=True):
            left = share
            while left:
                row = drawn_of_depth(generator, depth)
                if row is None or row.cost > MOST_TOKENS:
                    continue
                tokens = row.tokens()
                if tokens not in taken:
                    taken.add(tokens)
                    found.append(_example(tokens, row, float(depth)))
                    left -= 1
                    progress.add()
        return found

    def _original(self, split: str, rows: int, taken: set[tuple[str, ...]]) -> list[Example]:
        """Draw distinct rows as the published generator does, of up to ``train_tokens``."""
        generator = random.Random(f"listops original {self.seed} {split}")
        found: list[Example] = []
        progress = Drawing(f"listops, {split}", rows)
        while len(found) < rows:
            draft = _tree(generator.random, 20, 0.25)
            if not 1 < draft[2] <= 1.5 * self.train_tokens:
                continue
            row = _worked_out(draft)
            tokens = row.tokens()
            if len(tokens) <= self.train_tokens and tokens not in taken:
                taken.add(tokens)
                found.append(_example(tokens, row, float(self.train_tokens)))
                progress.add()
        return found


Draft = tuple[int, int, int, str, Sequence[Any]]
"""What is drawn, before it is known what it is worth: the fields of ``Expression``, of which value
and dependency are 0. Most of what is drawn turns out too long, so that it is never worked out."""


def _tree(random_share: Callable[[], float], depth: int, operator_share: float) -> Draft:
    """Draw an expression of at most a nesting depth."""
    if depth <= 1 or random_share() >= operator_share:
        return DIGITS[int(10 * random_share())]
    return _operation(random_share, depth, operator_share)


def _operation(random_share: Callable[[], float], depth: int, operator_share: float) -> Draft:
    """Draw an operator over expressions of at most a nesting depth less one."""
    count = 2 + int((MOST_ARGUMENTS - 1) * random_share())
    arguments: list[Draft]
    if depth == 2:
        arguments = [DIGITS[int(10 * random_share())] for _ in range(count)]
        cost = 3 + count
    else:
        arguments = _arguments(random_share, count, depth - 1, operator_share)
        cost = 3 + sum([part[2] for part in arguments])
    return 0, 0, cost, OPERATORS[int(4 * random_share())], arguments


def _arguments(
    random_share: Callable[[], float], count: int, depth: int, operator_share: float
) -> list[Draft]:
    """Draw some expressions as ``_tree`` does, whose call most digits are spared."""
    return [
        DIGITS[int(10 * random_share())]
        if depth <= 1 or random_share() >= operator_share
        else _operation(random_share, depth, operator_share)
        for _ in range(count)
    ]


def _worked_out(draft: Draft) -> Expression:
    """Return an expression with its value and dependency depth, as ``choose`` has them."""
    if isinstance(draft, Expression):
        return draft
    _, _, cost, operator, arguments = draft
    parts = [part if part[1] else _worked_out(part) for part in arguments]
    values = [part[0] for part in parts]
    if operator == "SM":
        value, dependency = sum(values) % 10, max([part[1] for part in parts])
    elif operator == "MED":
        value, places = _median(tuple(values))
        dependency = max([parts[place][1] for place in places])
    else:
        value = min(values) if operator == "MIN" else max(values)
        dependency = parts[values.index(value)][1]
    return Expression(value, 1 + dependency, cost, operator, parts)


@functools.lru_cache(maxsize=1 << 14)
def _median(values: tuple[int, ...]) -> tuple[int, Sequence[int]]:
    return choose("MED", values)


def drawn_of_depth(generator: random.Random, depth: int) -> Expression | None:
    """Draw an expression and wrap it in operators until it depends on that many; None: too long.

    Each wrapping puts what there is among fresh arguments, not at their end, as upstream; one that
    is too long, or whose operator does not choose it, is drawn again. Upstream draws whole trees
    until one fits, which takes very long for deep ones: there, fresh arguments are kept small here.
    """
    is_roomy = MOST_TOKENS / depth > 7  # room of a level
    random_share = generator.random

    def share(most: int) -> float:
        return 0.3 if most > 2 and is_roomy else 0.1

    first, most = min(depth, 4), min(depth - 1, 3)
    operator_share, counts = share(most), 3 if is_roomy else 2
    found, misses = _worked_out(_tree(random_share, first, share(first))), 0
    while found.dependency < depth:
        count = 1 + int(counts * random_share())
        arguments = _arguments(random_share, count, most, operator_share)
        arguments.insert(int(count * random_share()), found)
        operator = OPERATORS[int(4 * random_share())]
        cost = 3 + sum([part[2] for part in arguments])
        if cost <= MOST_TOKENS:
            wrapped = _worked_out((0, 0, cost, operator, arguments))
            if found.dependency < wrapped.dependency <= depth:
                found = wrapped
                continue
        misses += 1
        if misses > 40:
            return None
    return found if found.dependency == depth else None


def _example(tokens: tuple[str, ...], row: Expression, difficulty: float) -> Example:
    return Example(tokens, (str(row.value),), f"depth {row.dependency}", difficulty)


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
