"""CTL++: functions that train composes inside their groups, composed across them in the test.

Functions are bijections of eight symbols, known by their rows alone, and divided into groups. Which
group may follow which is a rule of train that the tests break. Three sets of rules:

* ``alternate``: a and b in turn; tests stay in one group, or go anywhere.
* ``branch``: a after a, b after b; functions of a third group, o, may stand between two of one
  group. They are shared, but each is shown with some symbols to one group alone.
* ``branch_2stage``: a1 a2 a1 a2 …, b1 b2 b1 b2 …, and o in place of a2 or b2; either branch
  may follow a second stage.

>>> task = CtlPlus(rules="alternate", functions=4, train_rows=50, test_rows=10)
>>> task.groups()
{'a': (0, 1), 'b': (2, 3)}
>>> row = task.split("train")[-1]
>>> len({function in "ab" for function in row.source[1::2]})  # every other one is of one group
1

The rules and the tests are those of the published generator; the tables and rows are drawn here.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from tasks.base.about import About
from tasks.base.generated import equal_shares
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask, Kind

SYMBOLS = 8
NAMES = string.ascii_letters + string.punctuation
Row = tuple[int, tuple[int, ...]]
"""Argument, and functions in the order of application."""

Edges = dict[tuple[str, ...], tuple[str, ...]]
"""Group, or pair of groups, → groups that may follow; "IN" is the beginning."""

MISSES = 5000
"""Draws in a row that give no new chain, after which a length is taken to be used up."""


class Plan(NamedTuple):
    """Which groups may follow which.

    Args:
        edges: group, or pair of groups, → groups that may follow; "IN" is the beginning.
        ends: groups after which a chain may end.
        only_after: (group before, function of o) → symbols that it may be applied to there.
    """

    edges: Mapping[tuple[str, ...], tuple[str, ...]]
    ends: tuple[str, ...]
    only_after: Mapping[tuple[str, int], frozenset[int]] = {}


@dataclass(frozen=True, kw_only=True)
class CtlPlus(ExampleTask):
    """Table lookup with groups of functions that train never composes with each other."""

    name: ClassVar[str] = "ctl_plus"
    difficulty_name: ClassVar[str] = "functions applied"
    in_distribution_split = "iid"
    about: ClassVar[About] = About(
        family="table lookup",
        hard="composing functions whose groups train keeps apart",
        source="CTL++; robertcsordas/ctlpp 1b5ab28e",
        published=(
            "sizes: 8 symbols, 32 functions, up to 6 of them, 300,000 rows and all pairs of train; "
            "overlap of 4, 8, 12 or 16 functions on 2 to 6 symbols (sweeps)",
        ),
    )

    rules: Literal["alternate", "branch", "branch_2stage"] = "branch_2stage"
    """Which groups follow which in train."""
    functions: int = 32
    """Functions, at most 84."""
    overlap: int = 4
    """Functions of the shared group o; 0: there is none."""
    symbol_overlap: int = 8
    """Symbols that a function of o is shown with to both groups, of 8."""
    depths: tuple[int, int] = (1, 6)
    """Fewest and most functions of a chain."""
    train_rows: int = 300_000
    """Distinct rows of train, before all its pairs are added."""
    iid_rows: int = 1000
    """Rows of iid."""
    test_rows: int = 1000
    """Rows of each test, where there are so many."""
    seed: int = 0
    """Seed of tables and rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = {"alternate": 2, "branch": 2, "branch_2stage": 4}[self.rules]
        shared = 0 if self.rules == "alternate" else self.overlap
        fits = shared >= 0 and shared + groups <= self.functions
        require(self, "overlap", fits, f"at most {self.functions - groups}")
        require(self, "functions", groups <= self.functions <= 84, f"{groups} to 84")
        require(self, "symbol_overlap", 0 <= self.symbol_overlap <= SYMBOLS, "0 to 8")
        fits = 1 <= self.depths[0] <= self.depths[1]
        require(self, "depths", fits and self.depths[1] >= 2, "[fewest, most], the most 2 or more")
        object.__setattr__(self, "depths", tuple(self.depths))
        for name in ("train_rows", "iid_rows", "test_rows"):
            require(self, name, getattr(self, name) >= 1, "at least 1")

    @property
    def kind(self) -> Kind:
        """Return classification."""
        return "classification"

    def groups(self) -> dict[str, tuple[int, ...]]:
        """Return the functions of each group, the shared one first."""
        names = {"alternate": "a b", "branch": "a b", "branch_2stage": "a1 a2 b1 b2"}[self.rules]
        shared = 0 if self.rules == "alternate" else self.overlap
        found = {"o": tuple(range(shared))} if shared else {}
        rest, parts = range(shared, self.functions), names.split()
        size = -(-len(rest) // len(parts))
        for number, name in enumerate(parts):
            found[name] = tuple(rest[number * size : (number + 1) * size])
        return found

    def function_tables(self) -> list[list[int]]:
        """Return the value of each function for each symbol, all functions distinct."""
        generator = random.Random(f"ctl_plus {self.seed} tables")
        found: dict[tuple[int, ...], None] = {}
        while len(found) < self.functions:
            found[tuple(generator.sample(range(SYMBOLS), SYMBOLS))] = None
        return [list(table) for table in found]

    def _shown(self, sources: Sequence[str]) -> dict[tuple[str, int], frozenset[int]]:
        """Return the symbols with which each group shows each function of o in train."""
        generator = random.Random(f"ctl_plus {self.seed} overlap")
        names, shown = list(range(SYMBOLS)), {}
        passes = -(-SYMBOLS // self.symbol_overlap) if self.symbol_overlap else 1
        for number, function in enumerate(self.groups().get("o", ())):
            begin = number * self.symbol_overlap
            both = {names[i % SYMBOLS] for i in range(begin, begin + self.symbol_overlap)}
            others = [symbol for symbol in range(SYMBOLS) if symbol not in both]
            if len(others) == 1:  # one of the groups has it, which one is drawn
                parts: list[list[int]] = [[], []]
                parts[generator.randrange(2)] = others
            else:
                half = -(-len(others) // 2)
                parts = [others[:half], others[half:]]
            for source, own in zip(sources, parts, strict=True):
                shown[source, function] = frozenset(both | set(own))
            if number % passes == passes - 1:
                generator.shuffle(names)
        return shown

    def plans(self) -> dict[str, Plan]:
        """Return the rules of train, and of each test by its name."""
        groups = tuple(self.groups())
        anywhere = Plan({(group,): groups for group in ("IN", *groups)}, groups)
        if self.rules == "alternate":
            train = Plan({("IN",): ("a", "b"), ("a",): ("b",), ("b",): ("a",)}, groups)
            loop = Plan({("IN",): ("a", "b"), ("a",): ("a",), ("b",): ("b",)}, groups)
            return {"train": train, "self_loop": loop, "all": anywhere}
        edges: Edges
        crossed: Edges
        loops: Edges = {(group,): (group,) for group in groups}
        loop = Plan({("IN",): groups, **loops}, groups)
        if self.rules == "branch":
            begins, ends = ("a", "b"), ("a", "b")
            edges = {("a",): ("a", "o"), ("b",): ("b", "o"), ("a", "o"): ("a",), ("b", "o"): ("b",)}
            crossed = {("a",): ("b",), ("b",): ("a",)}
        else:
            begins, ends = ("a1", "b1"), ("a2", "b2")
            edges = {("a1",): ("a2", "o"), ("b1",): ("b2", "o")}
            edges |= {(group,): begins for group in ("a2", "b2", "o")}
            crossed = {("a1",): ("b2",), ("b1",): ("a2",), ("a2",): begins, ("b2",): begins}
        shown = self._shown(begins)
        train = Plan({("IN",): begins, **edges}, (*ends, "o"), shown)
        plans = {
            "train": train,
            "group_alternate": Plan({("IN",): begins, **crossed}, ends),
            "self_loop": loop,
            "all": anywhere,
        }
        if self.overlap:
            free: Edges = {(group,): ("o",) for group in begins}
            plans["all_overlap"] = Plan({("IN",): begins, **free, ("o",): begins}, ("o",))
        unseen = {key: frozenset(range(SYMBOLS)) - symbols for key, symbols in shown.items()}
        if self.rules == "branch_2stage":
            if any(unseen.values()):
                only = Plan({("IN",): begins, ("a1",): ("o",), ("b1",): ("o",)}, ("o",), unseen)
                plans["cross_unseen_symbols"] = only
            pairs: Edges = {("a1",): ("b2", "o"), ("b1",): ("a2", "o")}
            plans["unseen_pairs"] = Plan({("IN",): begins, **pairs}, ("a2", "b2", "o"), unseen)
        return plans

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, iid and one test for each way to break its rules; all comes last."""
        plans = self.plans()
        groups, tables = self.groups(), self.function_tables()
        walkers = {name: _Walker(plan, groups, tables) for name, plan in plans.items()}
        generator = random.Random(f"ctl_plus {self.seed} train")
        rows = self._drawn(walkers["train"], self.train_rows + self.iid_rows, generator)
        generator.shuffle(rows)
        iid, train = rows[: self.iid_rows], rows[self.iid_rows :]
        held_out = set(iid)
        train += [row for row in walkers["train"].pairs() if row not in held_out]
        splits = {"train": train, "iid": iid}
        for name, walker in walkers.items():
            generator = random.Random(f"ctl_plus {self.seed} {name}")
            if name in ("cross_unseen_symbols", "unseen_pairs"):
                splits[name] = list(walker.pairs())
            elif name not in ("train", "all"):
                splits[name] = self._drawn(walker, self.test_rows, generator, fewest=2)
        generator = random.Random(f"ctl_plus {self.seed} all")
        splits["all"] = self._drawn(walkers["all"], self.test_rows, generator, fewest=2)
        return {
            name: [_example(row, tables) for row in rows] for name, rows in splits.items() if rows
        }

    def _drawn(
        self, walker: _Walker, count: int, generator: random.Random, fewest: int = 1
    ) -> list[Row]:
        """Return distinct rows, equally over the lengths as far as there are so many."""
        lengths = range(max(fewest, self.depths[0]), self.depths[1] + 1)
        found: list[Row] = []
        for number, length in enumerate(lengths):
            share = equal_shares(count - len(found), [count] * (len(lengths) - number))[-1]
            rows: dict[Row, None] = {}
            misses = 0
            while len(rows) < share and misses < MISSES:
                row = walker.walk(length, generator)
                misses = misses + 1 if row is None or row in rows else 0
                if row is not None:
                    rows[row] = None
            # Half of what there is stays unseen: short chains would else be known one and all.
            found += list(rows) if len(rows) == share else list(rows)[: -(-len(rows) // 2)]
        return found


class _Walker:
    """Walks over functions as a plan allows."""

    def __init__(
        self, plan: Plan, groups: Mapping[str, tuple[int, ...]], tables: list[list[int]]
    ) -> None:
        self.plan, self.groups, self.tables = plan, groups, tables
        self._choices: dict[tuple[tuple[str, ...], int], list[tuple[str, int]]] = {}

    def choices(self, history: tuple[str, ...], symbol: int) -> list[tuple[str, int]]:
        """Return the functions that may come next, each with its group."""
        key = (history[-2:], symbol)  # nothing before the last two groups matters
        if key not in self._choices:
            after = self.plan.edges.get(history[-2:], self.plan.edges.get(history[-1:], ()))
            self._choices[key] = [
                (group, function)
                for group in after
                for function in self.groups.get(group, ())
                if symbol in self.plan.only_after.get((history[-1], function), (symbol,))
            ]
        return self._choices[key]

    def walk(self, length: int, generator: random.Random) -> Row | None:
        """Return a random row of a length, or None where the walk ended elsewhere."""
        argument = symbol = generator.randrange(SYMBOLS)
        history: tuple[str, ...] = ("IN",)
        chain: list[int] = []
        for _ in range(length):
            choices = self.choices(history, symbol)
            if not choices:
                return None
            group, function = choices[generator.randrange(len(choices))]
            history, symbol = (*history, group), self.tables[function][symbol]
            chain.append(function)
        return (argument, tuple(chain)) if history[-1] in self.plan.ends else None

    def pairs(self) -> Iterator[Row]:
        """Yield every row of two functions."""
        for argument in range(SYMBOLS):
            for group, first in self.choices(("IN",), argument):
                symbol = self.tables[first][argument]
                for last, second in self.choices(("IN", group), symbol):
                    if last in self.plan.ends:
                        yield argument, (first, second)


def _example(row: Row, tables: list[list[int]]) -> Example:
    argument, chain = row
    value = argument
    for function in chain:
        value = tables[function][value]
    return Example(
        source=(str(argument), *(NAMES[function] for function in chain)),
        target=(str(value),),
        category=f"{len(chain)} functions",
        difficulty=float(len(chain)),
    )
