"""Compositional table lookup, row by row as the Neural Data Router's code makes it.

The draws are those of the published generator, in its order, from its seed (RandomState with
0x12345678), so that tables, rows and their numbers are the published ones. Only how the rows of
short chains are divided between train and test it draws without a seed; ``division_seed`` stands
for that.

>>> task = Ctl()
>>> {name: len(rows) for name, rows in task.splits().items()}["train"]
53704
>>> row = task.split("deeper")[0]
>>> print(*row.source)
011 f f e h f f i c a

Unlike in ``table_lookup``, whose rows are our own, three defects are kept: the chains of
``new_composition`` include the empty one and single functions that train has, a chain may be in
train and with another argument in the test, and shorter chains are rarer.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from tasks.base.about import About
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask, Kind

PUBLISHED_SEED = 0x12345678
SYMBOLS, TABLES, COMPOSED = 8, 11, 9
BITS = tuple(f"{symbol:03b}" for symbol in range(SYMBOLS))
DEEPEST = 5
"""Most functions of a chain in train."""
RESERVED = 200
"""Most chains of a length that train has with no argument; a quarter of that length's at most."""
HELD_OUT, LONGER_ROWS, PRIMITIVE_ROWS = 4000, 1000, (1000, 3000)
COPIES = 30
SPLITS = (
    *("train", "valid_iid", "valid_deeper", "basic", "iid"),
    *("new_primitive_1", "new_primitive_2", "new_composition", "deeper"),
)

Chain = tuple[int, ...]
"""Numbers of functions, the last one applied first."""


class Item(NamedTuple):
    """One row as the generator numbers it."""

    kind: str
    argument: int
    chain: Chain


@dataclass(frozen=True, kw_only=True)
class Ctl(ExampleTask):
    """The published rows of compositional table lookup, in both directions."""

    name: ClassVar[str] = "ctl"
    difficulty_name: ClassVar[str] = "functions applied"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid_deeper",)
    in_distribution_split = "iid"
    about: ClassVar[About] = About(
        family="table lookup",
        hard="applying more functions than in any row of train; backward, the order is turned",
        source="arXiv 2110.07732; robertcsordas/ndr da20530d",
        published=(
            "deeper, forward and backward (ICLR submission): LSTM 1.00, .22; Transformer .13, .12; "
            "with relative positions .23, .13; Neural Data Router 1.00, 1.00; chance .125",
        ),
    )

    direction: Literal["forward", "backward"] = "forward"
    """forward: argument, then functions as applied; backward: the row reversed."""
    valid_further: int = 3
    """Functions of a chain in valid_deeper beyond 5: up to 8; upstream's baselines have 2."""
    test_further: int = 5
    """The same in deeper, from where valid_deeper ends: 9 and 10."""
    division_seed: int = 0
    """Seed of the division of short chains between train and test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "valid_further", self.valid_further >= 1, "at least 1")
        longer = self.test_further > self.valid_further
        require(self, "test_further", longer, "above task.valid_further")

    @property
    def kind(self) -> Kind:
        """Return classification."""
        return "classification"

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, both validation sets, and the tests, the deeper one last."""
        items, parts = self.items()
        tables = self.tables_of_functions()
        plain = tables.tolist()
        return {name: [self.example(items[n], plain) for n in parts[name]] for name in SPLITS}

    def tables_of_functions(self) -> np.ndarray:
        """Return the value of each function (11, 8) for each symbol."""
        generator = np.random.RandomState(PUBLISHED_SEED)
        return np.stack([generator.permutation(SYMBOLS) for _ in range(TABLES)])

    def items(self) -> tuple[list[Item], dict[str, list[int]]]:
        """Return all rows in the published order, and the numbers of those of each split."""
        state = np.random.RandomState(PUBLISHED_SEED)
        divide = np.random.RandomState(self.division_seed)
        for _ in range(TABLES):
            state.permutation(SYMBOLS)
        draw = Numbers(state)
        reserved = _reserved(draw)
        items: list[Item] = []
        parts: dict[str, list[int]] = {}

        def add(kind: str, rows: Sequence[tuple[int, Chain]]) -> list[int]:
            first = len(items)
            items.extend(Item(kind, argument, chain) for argument, chain in rows)
            return list(range(first, len(items)))

        basic = [(a, (table,)) for table in range(TABLES) for a in range(SYMBOLS)]
        parts["train"] = parts["basic"] = add("basic", basic)

        short = add("iid", self._short(draw, reserved))
        # The order in which a set of these numbers is walked over decides which are of the test.
        chosen = set(divide.choice(len(short), 2 * HELD_OUT, replace=False))
        parts["train"] = parts["train"] + [n for i, n in enumerate(short) if i not in chosen]
        parts["iid"] = [short[i] for i in list(chosen)[:HELD_OUT]]
        parts["valid_iid"] = [short[i] for i in list(chosen)[HELD_OUT:]]

        first = _distinct(PRIMITIVE_ROWS[0], lambda: _with_first_primitive(draw))
        parts["new_primitive_1"] = add("new_primitive_1", first)
        numbers = add(
            "new_primitive_2", _distinct(PRIMITIVE_ROWS[1], lambda: _with_second_primitive(draw))
        )
        chosen = set(divide.choice(len(numbers), PRIMITIVE_ROWS[0], replace=False))
        parts["new_primitive_2"] = [numbers[i] for i in chosen]

        most = DEEPEST + self.valid_further
        parts["valid_deeper"] = add("deeper_val", _longer(draw, DEEPEST + 1, most))
        deepest = DEEPEST + self.test_further
        parts["deeper"] = add("deeper", _longer(draw, most + 1, deepest))

        parts["new_composition"] = add(
            "new_composition", [(draw.below(SYMBOLS), chain) for chain in reserved]
        )
        copies = [
            (a, (table,))
            for table in range(COMPOSED, TABLES)
            for _ in range(COPIES)
            for a in range(SYMBOLS)
        ]
        parts["train"] = parts["train"] + add("basic", copies)
        return items, parts

    def _short(self, draw: Numbers, reserved: set[Chain]) -> list[tuple[int, Chain]]:
        """Return the rows of 2 to 5 functions, without any reserved chain."""
        chains = COMPOSED**2 * (COMPOSED ** (DEEPEST - 1) - 1) // (COMPOSED - 1)
        train = SYMBOLS * chains // 10

        def one() -> tuple[int, Chain]:
            while True:
                drawn = draw.several(COMPOSED, DEEPEST)
                chain = tuple(drawn[: draw.between(2, DEEPEST)])
                if chain not in reserved:
                    return draw.below(SYMBOLS), chain

        return _distinct(train + 2 * HELD_OUT, one)

    def example(self, item: Item, tables: Sequence[Sequence[int]]) -> Example:
        """Return a row as tokens, with its label."""
        value = item.argument
        for number in reversed(item.chain):
            value = tables[number][value]
        tokens = (*[string.ascii_lowercase[n] for n in item.chain], BITS[item.argument])
        return Example(
            source=tokens[::-1] if self.direction == "forward" else tokens,
            target=(BITS[value],),
            category=item.kind,
            difficulty=float(len(item.chain)),
        )


class Numbers:
    """The numbers that ``RandomState.randint`` gives one after the other, several times as fast.

    For each it takes 32 bits, of which it keeps as many as the bound has, until they are below it.

    >>> numbers, state = Numbers(np.random.RandomState(1)), np.random.RandomState(1)
    >>> numbers.several(9, 5) == state.randint(9, size=5).tolist()
    True
    >>> numbers.between(2, 5) == state.randint(2, 6)
    True
    """

    def __init__(self, state: np.random.RandomState) -> None:
        """Go on where ``state`` stands, which nothing else may draw from."""
        self._next = _words(state).__next__

    def below(self, bound: int) -> int:
        """Return a number from 0 to below a bound."""
        return self.several(bound, 1)[0]

    def between(self, least: int, most: int) -> int:
        """Return a number from ``least`` to ``most``."""
        return least + self.several(most - least + 1, 1)[0]

    def several(self, bound: int, count: int) -> list[int]:
        """Return some numbers from 0 to below a bound; a bound of 1 leaves nothing to draw."""
        if bound == 1:
            return [0] * count
        mask, draw = (1 << (bound - 1).bit_length()) - 1, self._next
        found: list[int] = []
        while len(found) < count:
            number = draw() & mask
            if number < bound:
                found.append(number)
        return found


def _words(state: np.random.RandomState) -> Iterator[int]:
    """Yield what a generator draws, 32 bits at a time."""
    while True:
        yield from state.randint(0, 1 << 32, size=4096, dtype=np.uint32).tolist()


def _reserved(draw: Numbers) -> set[Chain]:
    """Return the chains that train has with no argument, as the published code walks them."""
    reserved: set[Chain] = set()
    for length in range(DEEPEST + 1):
        wanted = len(reserved) + min(RESERVED, 0.25 * COMPOSED**length)
        while len(reserved) < wanted:
            reserved.add(tuple(draw.several(COMPOSED, length)))
    return reserved


def _distinct(count: int, one: Callable[[], tuple[int, Chain]]) -> list[tuple[int, Chain]]:
    """Return distinct rows in the order in which they are drawn."""
    rows: dict[tuple[int, Chain], None] = {}
    while len(rows) < count:
        rows[one()] = None
    return list(rows)


def _with_first_primitive(draw: Numbers) -> tuple[int, Chain]:
    argument = draw.below(SYMBOLS)
    drawn = draw.several(TABLES - 1, DEEPEST)
    chain = drawn[: draw.between(2, DEEPEST)]
    chain[draw.below(len(chain))] = TABLES - 2
    return argument, tuple(chain)


def _with_second_primitive(draw: Numbers) -> tuple[int, Chain]:
    argument = draw.below(SYMBOLS)
    drawn = draw.several(TABLES - 1, DEEPEST)
    chain = drawn[: draw.between(2, DEEPEST)]
    chain = [TABLES - 1 if number == TABLES - 2 else number for number in chain]
    chain[draw.below(len(chain))] = TABLES - 1
    return argument, tuple(chain)


def _longer(draw: Numbers, fewest: int, most: int) -> list[tuple[int, Chain]]:
    def one() -> tuple[int, Chain]:
        argument = draw.below(SYMBOLS)
        drawn = draw.several(COMPOSED, most)
        return argument, tuple(drawn[: draw.between(fewest, most)])

    return _distinct(LONGER_ROWS, one)
