"""Compositional table lookup: apply a chain of functions, each known only by its table.

Symbols are bit strings, functions are letters, and one symbol or letter is one token. With
``direction`` forward the argument comes first and the functions follow in the order of
application; backward is the same row from right to left, so that the function applied first comes
last.

>>> tables = {"a": {"0": "1", "1": "0"}, "b": {"0": "1", "1": "1"}}
>>> lookup("0 b a".split(), tables)
['1', '0']
>>> lookup("a b 0".split(), tables)
['1', '0']

The task of Liška et al. (arXiv 1802.06467) as the Neural Data Router paper uses it (ndr, commit
da20530d): 8 symbols and 11 bijective tables, of which 9 are composed, chains of 2 to 5 in train and
of 9 and 10 in the test. As upstream, every table is in train entry by entry, those of the reserved
functions, which train never composes, 30 times more; and some chains are kept out of train with
every argument, and form new_composition. Train and iid have distinct rows, equally many of each
depth while a depth has that many. Three things differ: this file draws the tables with its own
generator, it never reserves chains of one function, and it seeds every random choice (upstream does
not seed the division of train and iid).
"""

from __future__ import annotations

import itertools
import math
import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.base.about import About
from tasks.base.generated import check_range, equal_shares
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask, Intermediate, Kind

Chain = tuple[str, ...]
"""Functions in the order of application."""
Row = tuple[str, Chain]
"""Argument and functions."""

_RESERVED_SHARE = 0.25
"""Largest share of a depth's chains that are reserved for new_composition."""
_COPIES = 30
"""Further copies in train of each table entry of a function that train never composes."""


def lookup(tokens: Sequence[str], tables: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the value after each function of a row, written forward or backward.

    Raises:
        ValueError: not all tokens but the first, or all but the last, are functions.
    """
    chain = list(tokens)
    if chain and chain[0] in tables:
        chain.reverse()
    if len(chain) < 2 or chain[0] in tables or any(name not in tables for name in chain[1:]):
        raise ValueError(f"{' '.join(tokens)!r}: expected one argument before or after functions")
    value, values = chain[0], []
    for name in chain[1:]:
        value = tables[name][value]
        values.append(value)
    return values


@dataclass(frozen=True, kw_only=True)
class TableLookup(ExampleTask):
    """Compositional table lookup; the defaults are the Neural Data Router's sizes and depths."""

    name: ClassVar[str] = "table_lookup"
    about: ClassVar[About] = About(
        family="table lookup",
        hard="more functions in a row than in train",
        source="arXiv 1802.06467; as in robertcsordas/ndr da20530d, rows drawn here",
        published=("see the task ctl, whose rows are the published ones",),
    )
    difficulty_name: ClassVar[str] = "functions applied"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid_deeper",)
    in_distribution_split = "iid"

    direction: Literal["forward", "backward"] = "forward"
    """forward: argument, then functions as applied; backward: the row reversed."""
    bits: int = 3
    """Bits of a symbol: 2 ** bits symbols."""
    composed_functions: int = 9
    """Functions that train composes."""
    reserved_functions: int = 2
    """Functions that train shows only uncomposed, and new_primitive composes with the others."""
    train_depths: tuple[int, int] = (2, 5)
    """Fewest and most functions of a chain in train and iid; single functions are all in train."""
    valid_depths: tuple[int, int] = (6, 8)
    """Functions of a chain in valid_deeper."""
    test_depths: tuple[int, int] = (9, 10)
    """Functions of a chain in deeper."""
    train_rows: int = 53_136
    """Training rows with two functions or more."""
    iid_rows: int = 4000
    """Rows of iid."""
    valid_rows: int = 1000
    """Rows of valid_deeper; 0 leaves the split and valid_depths out."""
    test_rows: int = 1000
    """Rows of deeper, and of new_primitive for each reserved function."""
    equal_depths: bool = False
    """Repeat the rows of each depth in train, single functions too, until every depth has as many
    as the largest: there are few short chains, and without them longer ones are learned late."""
    reserved_chains: int = 200
    """Chains of each depth that only new_composition has, a quarter of that depth's at most."""
    output: Literal["label", "answer", "steps"] = "label"
    """label: classification. answer: a sequence of that one symbol. steps: a sequence of the
    values after each function, the answer last."""
    seed: int = 0
    """Seed of the tables and the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "bits", 1 <= self.bits <= 6, "1 to 6")
        require(self, "composed_functions", self.composed_functions >= 1, "at least 1")
        require(self, "reserved_functions", self.reserved_functions >= 0, "at least 0")
        letters = len(string.ascii_lowercase)
        require(
            self,
            "composed_functions",
            self.composed_functions + self.reserved_functions <= letters,
            f"at most {letters} with the reserved_functions, one letter each",
        )
        check_range(self, "train_depths", minimum=2)
        if self.valid_rows:
            check_range(self, "valid_depths", minimum=2, above="train_depths")
        below = "valid_depths" if self.valid_rows else "train_depths"
        check_range(self, "test_depths", minimum=2, above=below)
        for rows in ("train_rows", "iid_rows", "test_rows"):
            require(self, rows, getattr(self, rows) >= 1, "at least 1")
        for rows in ("valid_rows", "reserved_chains"):
            require(self, rows, getattr(self, rows) >= 0, "at least 0")

    @property
    def kind(self) -> Kind:
        """Return classification for ``output: label``, sequence-to-sequence for the others."""
        return "classification" if self.output == "label" else "sequence_to_sequence"

    def symbols(self) -> list[str]:
        """Return all symbols in order."""
        return [f"{number:0{self.bits}b}" for number in range(2**self.bits)]

    def functions(self) -> tuple[list[str], list[str]]:
        """Return the names of the composed and of the reserved functions."""
        names = list(string.ascii_lowercase[: self.composed_functions + self.reserved_functions])
        return names[: self.composed_functions], names[self.composed_functions :]

    def function_tables(self) -> dict[str, dict[str, str]]:
        """Return each function's table, a bijection of the symbols."""
        generator = random.Random(f"table_lookup {self.seed} tables")
        symbols = self.symbols()
        return {
            name: dict(zip(symbols, generator.sample(symbols, len(symbols)), strict=True))
            for name in itertools.chain(*self.functions())
        }

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, valid_deeper, iid, new_composition, new_primitive and deeper.

        new_composition and new_primitive are left out where nothing is reserved, and valid_deeper
        where it has no rows.
        """
        composed, reserved = self.functions()
        symbols = self.symbols()
        chains = self._reserved_chains(composed)
        in_distribution = self._composed_rows(composed, chains)
        single = [(symbol, (name,)) for name in composed + reserved for symbol in symbols]
        single += [row for row in single if row[1][0] in reserved for _ in range(_COPIES)]
        train = single + in_distribution[self.iid_rows :]
        if self.equal_depths:
            train = _repeated_to_equal_depths(train)
        splits: dict[str, list[Row]] = {"train": train}
        if self.valid_rows:
            splits["valid_deeper"] = self._draw(
                "valid_deeper", self.valid_depths, self.valid_rows, composed
            )
        splits["iid"] = in_distribution[: self.iid_rows]
        if chains:
            generator = random.Random(f"table_lookup {self.seed} new_composition")
            splits["new_composition"] = [(generator.choice(symbols), chain) for chain in chains]
        if reserved:
            splits["new_primitive"] = [
                row
                for name in reserved
                for row in self._draw(
                    f"new_primitive {name}", self.train_depths, self.test_rows, composed, name
                )
            ]
        splits["deeper"] = self._draw("deeper", self.test_depths, self.test_rows, composed)
        tables = self.function_tables()
        return {name: [self._example(row, tables) for row in rows] for name, rows in splits.items()}

    def _reserved_chains(self, composed: list[str]) -> list[Chain]:
        generator = random.Random(f"table_lookup {self.seed} reserved chains")
        chains: list[Chain] = []
        for depth in range(self.train_depths[0], self.train_depths[1] + 1):
            all_chains = len(composed) ** depth
            count = min(self.reserved_chains, math.ceil(_RESERVED_SHARE * all_chains))
            # A chain is its number written in base len(composed): all of them need no list.
            for number in generator.sample(range(all_chains), count):
                chains.append(_chain(number, composed, depth))
        return chains

    def _composed_rows(self, composed: list[str], reserved_chains: Iterable[Chain]) -> list[Row]:
        """Return distinct rows for iid and train, shuffled, without any reserved chain."""
        generator = random.Random(f"table_lookup {self.seed} composed")
        reserved = set(reserved_chains)
        depths = range(self.train_depths[0], self.train_depths[1] + 1)
        symbols = self.symbols()
        held_back = [sum(len(chain) == depth for chain in reserved) for depth in depths]
        capacities = [
            (len(composed) ** depth - count) * len(symbols)
            for depth, count in zip(depths, held_back, strict=True)
        ]
        wanted = self.train_rows + self.iid_rows
        most = max(sum(capacities) - self.iid_rows, 0)
        require(self, "train_rows", wanted <= sum(capacities), f"at most {most}")
        shares = equal_shares(wanted, capacities)
        rows: list[Row] = []
        for depth, share, count in zip(depths, shares, held_back, strict=True):
            numbers = range(len(composed) ** depth * len(symbols))
            # So many that enough are left even if every reserved one is among them.
            drawn = generator.sample(numbers, share + count * len(symbols))
            found = (
                (symbols[number % len(symbols)], _chain(number // len(symbols), composed, depth))
                for number in drawn
            )
            rows += itertools.islice((row for row in found if row[1] not in reserved), share)
        generator.shuffle(rows)
        return rows

    def _draw(
        self,
        split: str,
        depths: tuple[int, int],
        rows: int,
        composed: list[str],
        reserved: str | None = None,
    ) -> list[Row]:
        """Draw distinct rows equally over depths, each with the function ``reserved`` if given."""
        generator = random.Random(f"table_lookup {self.seed} {split}")
        symbols = self.symbols()
        levels = range(depths[0], depths[1] + 1)
        old = len(composed)
        capacities = [
            len(symbols) * (old**depth if reserved is None else (old + 1) ** depth - old**depth)
            for depth in levels
        ]
        option = "valid_rows" if split == "valid_deeper" else "test_rows"
        require(self, option, rows <= sum(capacities), f"at most {sum(capacities)}")
        names = composed if reserved is None else [*composed, reserved]
        result: list[Row] = []
        for depth, share in zip(levels, equal_shares(rows, capacities), strict=True):
            drawn: dict[Row, None] = {}
            while len(drawn) < share:
                chain = tuple(generator.choices(names, k=depth))
                if reserved is None or reserved in chain:
                    drawn[generator.choice(symbols), chain] = None
            result += drawn
        return result

    def intermediate_values(self, example: Example) -> list[Intermediate]:
        """Return the value after each function; it depends on the argument and those up to it."""
        tables = self.function_tables()
        last = len(example.source) - 1
        read = example.source if self.direction == "forward" else example.source[::-1]
        return [
            Intermediate(
                name=f"after function {number}",
                value=value,
                token=number if self.direction == "forward" else last - number,
                key=" ".join(read[: number + 1]),
            )
            for number, value in enumerate(lookup(example.source, tables), start=1)
        ]

    def _example(self, row: Row, tables: Mapping[str, Mapping[str, str]]) -> Example:
        argument, chain = row
        tokens = (argument, *chain)
        values = lookup(tokens, tables)
        reserved = sorted(set(chain) & set(self.functions()[1]))
        return Example(
            source=tokens if self.direction == "forward" else tokens[::-1],
            target=tuple(values if self.output == "steps" else values[-1:]),
            category=f"function {reserved[0]}" if reserved else f"depth {len(chain)}",
            difficulty=float(len(chain)),
        )


def _chain(number: int, names: Sequence[str], depth: int) -> Chain:
    """Return chain ``number`` of all chains of a depth."""
    chain = []
    for _ in range(depth):
        number, digit = divmod(number, len(names))
        chain.append(names[digit])
    return tuple(chain)


def _repeated_to_equal_depths(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with those of each depth repeated up to the count of the largest depth."""
    by_depth: dict[int, list[Row]] = {}
    for row in rows:
        by_depth.setdefault(len(row[1]), []).append(row)
    largest = max(len(group) for group in by_depth.values())
    return [
        row
        for group in by_depth.values()
        for row in itertools.islice(itertools.cycle(group), largest)
    ]
