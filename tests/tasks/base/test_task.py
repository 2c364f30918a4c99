"""The task base: options, splits, vocabularies, hashes, row selection; and all registered tasks."""

from __future__ import annotations

import collections
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

import tasks
from tasks.base import scoring
from tasks.base.metrics import Answers, Prediction
from tasks.base.task import BOS, EOS, PAD, UNKNOWN, Example, ExampleTask, Vocabulary, select_rows

# Small sizes, so that every generated task is quick; what needs official files is tested apart.
ROWS = {"train_rows": 500, "iid_rows": 50, "valid_rows": 50, "test_rows": 50}
SMALL: dict[str, dict[str, object]] = {
    "scan": {"variant": "length"},
    "cogs_like": {"train_rows": 500, "dev_rows": 50, "test_rows": 50, "gen_rows": 20},
    "arithmetic": ROWS,
    "addition": ROWS,
    "multiplication": ROWS,
    "table_lookup": ROWS,
}


@dataclass(frozen=True, kw_only=True)
class Toy(ExampleTask):
    """A toy."""

    name: ClassVar[str] = "toy"

    size: int = 3
    """How many rows."""

    def build_splits(self) -> dict[str, list[Example]]:
        rows = [Example((f"a{i}", "b"), (f"c{i}",) * (i + 1)) for i in range(self.size)]
        return {"train": rows, "test": [Example(("z", "b"), ("q",))]}


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "toy", Toy)


def test_unknown_task_and_split_give_the_nearest_match():
    with pytest.raises(ValueError, match=r"task.name='tyo': expected one of .*did you mean 'toy'"):
        tasks.create("tyo")
    with pytest.raises(ValueError, match=r"task.split='tets'.*train, test; did you mean 'test'"):
        tasks.create("toy").split("tets")


def test_vocabulary_is_built_from_train_only_and_ids_are_fixed():
    source, target = tasks.create("toy").vocabularies()
    assert source.tokens == (PAD, BOS, EOS, UNKNOWN, "a0", "a1", "a2", "b")
    assert "z" not in source
    assert "q" not in target
    assert source.encode(("z", "b")) == [Vocabulary.unknown, 7]
    assert (Vocabulary.pad, Vocabulary.bos, Vocabulary.eos, Vocabulary.unknown) == (0, 1, 2, 3)
    assert source.decode(source.encode(("a1", "b"))) == ["a1", "b"]


def test_lengths_cover_every_split():
    task = tasks.create("toy", size=5)
    assert (task.max_source_length(), task.max_target_length()) == (2, 5)


def test_data_hash_changes_with_the_rows_their_order_and_their_split():
    rows = [Example(("a",), ("x",)), Example(("b",), ("y",), "kind", 2)]

    def hashed(**splits: list[Example]) -> str:
        task = Toy()
        object.__setattr__(task, "_splits", splits)
        return task.data_hash()

    base = hashed(train=rows, test=rows[:1])
    assert base == hashed(train=list(rows), test=rows[:1])
    changed = [
        hashed(train=rows[::-1], test=rows[:1]),
        hashed(train=rows, tset=rows[:1]),
        hashed(train=rows[:1], test=[rows[1], rows[0]]),
        hashed(train=[rows[0], Example(("b",), ("x",), "kind", 2)], test=rows[:1]),
        hashed(train=[rows[0], Example(("b",), ("y",), "other", 2)], test=rows[:1]),
        hashed(train=[rows[0], Example(("b",), ("y",), "kind", 3)], test=rows[:1]),
    ]
    assert len({base, *changed}) == 1 + len(changed)


def test_selected_rows_depend_on_the_rows_alone():
    rows = [Example((f"w{i}",), ("y",), "even" if i % 2 == 0 else "odd") for i in range(100)]
    chosen = select_rows(rows, 10)
    assert collections.Counter(row.category for row in chosen) == {"even": 10, "odd": 10}
    assert [rows.index(row) for row in chosen] == sorted(rows.index(row) for row in chosen)
    assert set(select_rows(rows[::-1], 10)) == set(chosen)
    assert set(select_rows(rows, 5)) < set(chosen)
    assert select_rows(rows, 1000) == rows == select_rows(rows, None)
    # By hash, not by position: otherwise a sorted file would give its easiest rows.
    assert chosen != rows[:20]
    with pytest.raises(ValueError, match="rows_per_category=0"):
        select_rows(rows, 0)


class Counted(Sequence):
    """More rows than fit in memory: row i is made from i when it is asked for."""

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index):
        bits = tuple(f"{index % 16:04b}")
        return Example(bits, (str(bits.count("1") % 2),))

    def __iter__(self):
        raise AssertionError("nothing may walk over all rows")


@dataclass(frozen=True, kw_only=True)
class Parity(ExampleTask):
    """Whether the number of ones is odd."""

    name: ClassVar[str] = "parity"
    kind: ClassVar[str] = "classification"

    def build_splits(self):
        return {"train": Counted(), "test": [Example(("1",), ("1",)), Example(("0",), ("0",))]}

    def vocabularies(self):
        return Vocabulary("01"), Vocabulary("01")

    def classes(self):
        return ("0", "1")

    def majority_target(self):
        return ("0",)

    def data_hash(self):
        return "rows by index, version 1"


def test_rows_may_be_made_when_they_are_asked_for():
    task = Parity()
    assert task.split("train")[7 + 16 * 10**9] == Example(tuple("0111"), ("1",))
    assert (len(task.split("train")), task.data_hash()) == (10**12, "rows by index, version 1")
    rows = task.split("test")
    answers = Answers(rows, [Prediction(("1",)), Prediction(("1",))])
    scores = scoring.score(task, answers)
    assert scores.metrics == {"accuracy": 0.5}
    assert (scores.ceiling, scores.chance, scores.majority) == (1.0, 0.5, 0.5)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_tasks_keep_what_the_base_promises(name):
    task = tasks.create(name, **SMALL[name])
    splits = task.splits()
    assert next(iter(splits)) == task.train_split
    assert task.splits() is splits
    assert tasks.create(name, **SMALL[name]).data_hash() == task.data_hash()
    assert task.in_distribution_split is None or task.in_distribution_split in splits
    assert set(task.selection_splits) <= set(splits) - {task.train_split}
    for rows in splits.values():
        assert rows
        assert all(row.source and row.target for row in rows)
        assert all(isinstance(row.difficulty, (int, float)) for row in rows)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"scan"}))
def test_data_seed_decides_the_data(name):
    hashes = [tasks.create(name, seed=seed, **SMALL[name]).data_hash() for seed in (0, 1, 0)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_rows_are_built_without_looking_for_cycles(monkeypatch):
    seen = []

    def build(self):
        seen.append(gc.isenabled())
        raise OSError("no file")

    monkeypatch.setattr(Toy, "build_splits", build)
    with pytest.raises(OSError, match="no file"):
        tasks.create("toy").splits()
    assert seen == [False]
    assert gc.isenabled()
