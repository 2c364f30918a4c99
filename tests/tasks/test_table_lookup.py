"""Compositional table lookup: published rows, tables, depths, splits without overlap."""

import csv
from collections import Counter

import pytest

from tasks.table_lookup import TableLookup, lookup


def small(**options) -> TableLookup:
    sizes = {
        "bits": 2,
        "composed_functions": 4,
        "reserved_functions": 1,
        "train_depths": (2, 4),
        "valid_depths": (5, 5),
        "test_depths": (6, 7),
        "train_rows": 600,
        "iid_rows": 60,
        "valid_rows": 30,
        "test_rows": 40,
        "reserved_chains": 10,
    }
    return TableLookup(**{**sizes, **options})


def chain_of(example) -> tuple[str, ...]:
    return example.source[1:]


@pytest.mark.golden
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_published_rows_have_their_labels(golden_dir, direction):
    tables: dict[str, dict[str, str]] = {}
    with open(golden_dir / "data" / "ctl_tables.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            tables.setdefault(row["function"], {})[row["argument"]] = row["value"]
    with open(golden_dir / "data" / f"ctl_{direction}.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 200
    for row in rows:
        values = lookup(row["input"].split(), tables)
        assert values[-1] == row["label"]
        assert len(values) == int(row["n_functions"])
    swapped = {**tables, "a": tables["b"], "b": tables["a"]}
    assert any(lookup(row["input"].split(), swapped)[-1] != row["label"] for row in rows)


@pytest.mark.parametrize("bad", ["", "a", "00", "a a", "00 11", "00 a 11", "a 00 a", "00 z"])
def test_malformed_rows_are_refused(bad):
    with pytest.raises(ValueError, match="expected one argument"):
        lookup(bad.split(), small().function_tables())


def test_tables_are_bijections_of_their_own():
    tables = TableLookup().function_tables()
    assert list(tables) == list("abcdefghijk")
    for table in tables.values():
        assert sorted(table) == sorted(table.values()) == TableLookup().symbols()
    assert len({tuple(table.values()) for table in tables.values()}) > 1
    assert tables != TableLookup(seed=1).function_tables()


def test_published_sizes():
    splits = TableLookup().splits()
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 53_704,
        "valid_deeper": 1000,
        "iid": 4000,
        "new_composition": 604,  # the published 608 count four chains of none or one function
        "new_primitive": 2000,
        "deeper": 1000,
    }
    depths = Counter(len(chain_of(example)) for example in splits["train"] + splits["iid"])
    assert depths[1] == 568
    assert depths[2] == 480
    assert depths[3] == 4368
    assert abs(depths[4] - depths[5]) <= 1


def test_depths_and_answers():
    task = small()
    splits = task.splits()
    depths = {name: Counter(e.difficulty for e in rows) for name, rows in splits.items()}
    assert set(depths["train"]) == {1, 2, 3, 4}
    assert set(depths["iid"]) <= {2, 3, 4}
    assert depths["valid_deeper"] == {5: 30}
    assert depths["deeper"] == {6: 20, 7: 20}
    for rows in splits.values():
        for example in rows:
            assert example.difficulty == len(chain_of(example))
            assert example.target == (lookup(example.source, task.function_tables())[-1],)


def test_splits_share_no_row_and_keep_what_is_reserved():
    splits = small().splits()
    rows = {name: {example.source for example in split} for name, split in splits.items()}
    for name in rows:
        for other in rows:
            assert name == other or not rows[name] & rows[other]
        if name != "train":
            assert len(rows[name]) == len(splits[name])
    trained = {chain_of(example) for example in splits["train"] + splits["iid"]}
    assert not trained & {chain_of(example) for example in splits["new_composition"]}
    assert Counter(len(chain_of(e)) for e in splits["new_composition"]) == {2: 4, 3: 10, 4: 10}
    assert all("e" in chain_of(example) for example in splits["new_primitive"])
    alone = [chain_of(example) for example in splits["train"] if "e" in chain_of(example)]
    assert set(alone) == {("e",)}
    assert len(alone) == 4 * 31
    assert all("e" not in chain_of(example) for example in splits["deeper"])


def test_backward_is_forward_reversed():
    forward, backward = small().splits(), small(direction="backward").splits()
    for name, rows in forward.items():
        for example, other in zip(rows, backward[name], strict=True):
            assert other.source == example.source[::-1]
            assert other.target == example.target


def test_outputs():
    label, answer, every = (small(output=output) for output in ("label", "answer", "steps"))
    assert label.kind == "classification"
    assert answer.kind == every.kind == "sequence_to_sequence"
    assert answer.splits() == label.splits()
    for example, short in zip(every.splits()["deeper"], label.splits()["deeper"], strict=True):
        assert list(example.target) == lookup(example.source, every.function_tables())
        assert example.target[-1:] == short.target


def test_nothing_reserved():
    task = small(reserved_functions=0, reserved_chains=0)
    assert list(task.splits()) == ["train", "valid_deeper", "iid", "deeper"]
    every = small(
        reserved_functions=0, reserved_chains=0, train_depths=(2, 2), train_rows=44, iid_rows=20
    ).splits()
    composed = [e.source for e in every["train"] + every["iid"] if e.difficulty == 2]
    assert len(set(composed)) == 4 * 4 * 4


def test_short_chains_can_be_as_frequent_as_long_ones():
    plain, equal = small().splits(), small(equal_depths=True).splits()
    depths = Counter(example.difficulty for example in equal["train"])
    largest = max(Counter(example.difficulty for example in plain["train"]).values())
    assert depths == dict.fromkeys((1, 2, 3, 4), largest)
    assert set(equal["train"]) == set(plain["train"])
    copies = Counter(example for example in equal["train"] if example.difficulty == 2)
    assert max(copies.values()) - min(copies.values()) <= 1
    assert {name: rows for name, rows in equal.items() if name != "train"} == {
        name: rows for name, rows in plain.items() if name != "train"
    }


def test_without_a_validation_split_the_test_may_begin_one_deeper_than_train():
    splits = small(valid_rows=0, test_depths=(5, 6)).splits()
    assert "valid_deeper" not in splits
    assert {example.difficulty for example in splits["deeper"]} == {5, 6}
    with pytest.raises(ValueError, match=r"task\.test_depths.*above task\.train_depths"):
        small(valid_rows=0, test_depths=(4, 6))


def test_rows_depend_on_the_seed():
    assert small().splits() == small().splits()
    assert small().splits()["deeper"] != small(seed=1).splits()["deeper"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "forwards"}, r"task\.direction='forwards'.*did you mean 'forward'"),
        ({"bits": 7}, r"task\.bits=7"),
        ({"composed_functions": 26}, r"task\.composed_functions=26: must be at most 26"),
        ({"train_depths": (1, 4)}, r"task\.train_depths"),
        ({"valid_depths": (4, 5)}, r"task\.valid_depths.*above task\.train_depths"),
        ({"test_rows": 0}, r"task\.test_rows=0"),
        ({"output": "value"}, r"task\.output='value'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_more_rows_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"task\.train_rows=2000: must be at most"):
        small(train_rows=2000).splits()
