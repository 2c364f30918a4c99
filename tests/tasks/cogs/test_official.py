"""The official COGS files as a task: counts, ceiling, depths and tables."""

import collections
import hashlib

import pytest

from tasks.base.data_files import DataDamaged, DataMissing
from tasks.base.scoring import ceiling
from tasks.base.task import Example
from tasks.cogs import official
from tasks.cogs.official import LEXICAL, RECURSION, STRUCTURAL, Cogs, generalisation_tables

# Of the 100 rows of each depth, how many have an output token that no training target has.
UNSEEN_BY_DEPTH = {
    "cp_recursion": {3: 10, 4: 43, 5: 91} | dict.fromkeys(range(6, 13), 100),
    "pp_recursion": {3: 2, 4: 10, 5: 70} | dict.fromkeys(range(6, 13), 100),
}


@pytest.fixture(scope="module")
def task(data_dir):
    return Cogs()


@pytest.mark.official
def test_split_sizes_and_categories(task):
    splits = task.splits()
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 24_155,
        "dev": 3_000,
        "test": 3_000,
        "gen": 21_000,
    }
    assert task.in_distribution_split == "test"
    assert task.selection_splits == ("dev",)
    train = collections.Counter(row.category for row in splits["train"])
    assert train.pop("in_distribution") == 24_000
    assert train.pop("primitive") == 143
    assert len(train) == 12
    assert set(train.values()) == {1}
    gen = collections.Counter(row.category for row in splits["gen"])
    assert gen == dict.fromkeys((*LEXICAL, *STRUCTURAL), 1_000)
    assert (len(LEXICAL), len(STRUCTURAL)) == (18, 3)


@pytest.mark.official
def test_no_sentence_is_in_two_splits_or_twice(task):
    sources = [row.source for rows in task.splits().values() for row in rows]
    assert len(sources) == len(set(sources)) == 51_155


@pytest.mark.official
def test_vocabularies_and_lengths(task):
    splits = task.splits()
    assert [len({t for row in splits[s] for t in row.source}) for s in splits] == [
        743,
        581,
        576,
        685,
    ]
    assert [len({t for row in splits[s] for t in row.target}) for s in splits] == [
        683,
        576,
        570,
        719,
    ]
    source, target = task.vocabularies()
    assert (len(source), len(target)) == (743 + 4, 683 + 4)
    assert [max(len(row.source) for row in splits[s]) for s in splits] == [22, 21, 19, 61]
    assert [max(len(row.target) for row in splits[s]) for s in splits] == [153, 162, 130, 480]
    assert task.max_target_length() == 480


@pytest.mark.official
def test_ceiling_from_output_tokens_that_training_never_shows(task):
    _, vocabulary = task.vocabularies()
    unseen = [
        row for row in task.splits()["gen"] if not all(token in vocabulary for token in row.target)
    ]
    assert len(unseen) == 1_634
    assert ceiling(task, task.split("gen")) == pytest.approx(1 - len(unseen) / 21_000)
    assert round(100 * (1 - len(unseen) / 21_000), 1) == 92.2
    by_category = collections.Counter(row.category for row in unseen)
    assert by_category["cp_recursion"] == 844
    assert by_category["pp_recursion"] == 782
    assert round(100 * (1 - by_category["cp_recursion"] / 1_000), 1) == 15.6
    assert round(100 * (1 - by_category["pp_recursion"] / 1_000), 1) == 21.8
    assert sum(by_category.values()) - 844 - 782 == 8
    for category, expected in UNSEEN_BY_DEPTH.items():
        found = collections.Counter(row.difficulty for row in unseen if row.category == category)
        assert found == expected


@pytest.mark.official
def test_longer_targets_than_training(task):
    longest = max(len(row.target) for row in task.splits()["train"])
    assert sum(len(row.target) > longest for row in task.splits()["gen"]) == 1_602


@pytest.mark.official
def test_difficulty_is_the_depth_of_recursion(task):
    splits = task.splits()
    for category in RECURSION:
        depths = collections.Counter(
            row.difficulty for row in splits["gen"] if row.category == category
        )
        assert depths == dict.fromkeys(range(3, 13), 100)
    for split, rows in splits.items():
        others = {row.difficulty for row in rows if row.category not in RECURSION}
        assert others == {0, 1, 2}, split


@pytest.mark.official
def test_tables_of_the_official_rows(task):
    rows = task.splits()["gen"]
    correct = [row.category in LEXICAL or row.difficulty == 3 for row in rows]
    tables = task.tables(rows, correct)
    structural = tables["lexical/structural"]["structural"]
    assert tables["lexical/structural"]["lexical"] == {"exact_match": 1.0, "rows": 18_000}
    assert structural == {"exact_match": 200 / 3_000, "rows": 3_000}
    for category in RECURSION:
        by_depth = tables[f"{category} by depth"]
        assert list(by_depth) == [str(depth) for depth in range(3, 13)]
        assert by_depth["3"] == {"exact_match": 1.0, "rows": 100}
        assert by_depth["12"] == {"exact_match": 0.0, "rows": 100}


def test_tables_count_what_they_say():
    def row(category, depth):
        return Example(("a",), ("b",), category, depth)

    rows = [
        row("prim_to_inf_arg", 0),
        row("active_to_passive", 1),
        row("obj_pp_to_subj_pp", 1),
        row("cp_recursion", 3),
        row("cp_recursion", 12),
        row("in_distribution", 2),
    ]
    tables = generalisation_tables(rows, [True, False, False, True, False, True])
    assert tables == {
        "cp_recursion by depth": {
            "3": {"exact_match": 1.0, "rows": 1},
            "12": {"exact_match": 0.0, "rows": 1},
        },
        "lexical/structural": {
            "lexical": {"exact_match": 0.5, "rows": 2},
            "structural": {"exact_match": 1 / 3, "rows": 3},
        },
    }
    assert generalisation_tables(rows[-1:], [True]) == {}


def test_missing_files_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataMissing, match=r"cogs/train.tsv.*python -m tasks.fetch cogs"):
        Cogs().splits()


@pytest.mark.official
def test_a_changed_byte_is_refused(data_dir, tmp_path, monkeypatch):
    for split in ("train", "dev", "test", "gen"):
        data = (data_dir / "cogs" / f"{split}.tsv").read_bytes()
        (tmp_path / "cogs").mkdir(exist_ok=True)
        (tmp_path / "cogs" / f"{split}.tsv").write_bytes(data)
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    gen = tmp_path / "cogs" / "gen.tsv"
    gen.write_bytes(gen.read_bytes().replace(b". agent", b". theme", 1))
    with pytest.raises(DataDamaged, match=r"gen.tsv: damaged"):
        Cogs().splits()


@pytest.mark.official
def test_the_table_is_that_of_the_files(data_dir):
    for split, file in official.DATA_FILES.items():
        data = (data_dir / "cogs" / f"{split}.tsv").read_bytes()
        assert hashlib.sha256(data).hexdigest() == file.sha256
        assert data.count(b"\n") == file.rows
        assert file.url.endswith(f"{official.COMMIT}/data/{split}.tsv")
