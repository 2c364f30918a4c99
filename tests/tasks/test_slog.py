"""SLOG: sizes and ceiling of the official files, and the published match."""

from __future__ import annotations

import collections
import csv
import random

import pytest

from tasks.base.data_files import DataDamaged
from tasks.base.metrics import Answers, Prediction
from tasks.base.reformatted_match import normal_form, numbered_first
from tasks.base.scoring import ceiling, score
from tasks.slog import MEMBERS, Slog, read_gen

pytestmark = pytest.mark.official


@pytest.fixture(scope="module")
def task(data_dir):
    return Slog()


def test_sizes_and_ceiling(task):
    sizes = {name: len(rows) for name, rows in task.splits().items()}
    assert sizes == {"train": 32_755, "dev": 4_046, "test": 4_046, "gen": 17_000}
    gen = collections.Counter(row.category for row in task.split("gen"))
    assert set(gen.values()) == {1_000}
    assert len(gen) == 17
    assert ceiling(task, task.split("gen")) == pytest.approx(1 - 2_237 / 17_000)
    sources = [row.source for row in task.split("train")]
    assert len(sources) - len(set(sources)) == 7
    others = {row.source for name in ("dev", "test", "gen") for row in task.split(name)}
    assert not others & set(sources)


def test_both_forms_are_of_the_same_sentences(task):
    free = Slog(form="variable_free")
    assert free.own_metrics == ()
    for split, rows in task.splits().items():
        for one, other in zip(rows, free.split(split), strict=True):
            assert (one.source, one.category) == (other.source, other.category)


def test_depths_of_gen_are_those_of_its_categories(task):
    depths = collections.defaultdict(set)
    for row in task.split("gen"):
        depths[row.category].add(row.difficulty)
    assert min(depths["PP_3"]) == min(depths["CP_3"]) == 3
    assert min(depths["PP_5-12"]) == min(depths["CP_5-12"]) == 5
    assert max(depths["PP_5-12"]) >= 12


def test_pairs_are_judged_as_by_the_published_code(data_dir):
    with open(data_dir / "slog/reformatted_match_pairs.tsv", encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(pairs) >= 22
    for pair in pairs:
        gold, written = normal_form(pair["gold"]), normal_form(pair["prediction"])
        assert gold == pair["gold_normal_form"]
        assert written == pair["prediction_normal_form"]
        assert str(int(gold == written)) == pair["their_reorder_reindex"]
        gold, written = numbered_first(pair["gold"]), numbered_first(pair["prediction"])
        assert str(int(gold == written)) == pair["their_reindex_reorder"]


def test_the_sort_sees_old_numbers(task):
    """Shuffled atoms always match; seven numbers further seven rows of dev do not.

    Numbered first, a renaming always matches, and shuffled atoms mostly do not.
    """
    generator = random.Random(0)
    moved = shuffled = strictly_moved = strictly_shuffled = 0
    for row in task.split("dev"):
        gold = normal_form(" ".join(row.target))
        further = [str(int(t) + 7) if t.isdigit() else t for t in row.target]
        moved += normal_form(" ".join(further)) != gold
        strict = numbered_first(" ".join(row.target))
        strictly_moved += numbered_first(" ".join(further)) != strict
        *nouns, atoms = " ".join(row.target).split(" ; ")
        parts = atoms.split(" AND ")
        if len(parts) > 1:
            generator.shuffle(parts)
            other = " ; ".join([*nouns, " AND ".join(parts)])
            shuffled += normal_form(other) != gold
            strictly_shuffled += numbered_first(other) != strict
    assert (moved, shuffled, strictly_moved) == (7, 0, 0)
    assert strictly_shuffled > 1000


def test_it_is_scored_by_the_match_too(task):
    row = next(row for row in task.split("dev") if "AND" in row.target and ";" not in row.target)
    parts = " ".join(row.target).split(" AND ")
    other = tuple(" AND ".join(parts[::-1]).split(" "))
    scores = score(task, Answers([row, row], [Prediction(other), Prediction(("x",))]))
    assert scores.metrics["exact_match"] == 0
    assert scores.metrics["reformatted_match"] == 0.5
    assert scores.metrics["strict_reformatted_match"] == 0
    (table,) = scores.tables["reformatted_match by category"].values()
    assert table == {"reformatted_match": 0.5, "rows": 2}


def test_a_changed_member_is_refused(data_dir, monkeypatch):
    monkeypatch.setitem(MEMBERS, "cogs", (MEMBERS["cogs"][0], "0" * 64))
    with pytest.raises(DataDamaged, match=r"gen_cogsLF\.tsv: damaged"):
        read_gen("cogs")
