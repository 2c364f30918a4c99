"""CFQ and MCWQ: the published preparation, and what the files must be."""

from __future__ import annotations

import csv
import json

import pytest

import tasks
from tasks import cfq, mcwq
from tasks.base.data_files import DataDamaged, DataMissing, unpacked


@pytest.mark.official
def test_pairs_are_prepared_as_by_the_published_code(data_dir):
    found = [cfq.example(*pair) for pair in cfq.read_pairs(data_dir / "cfq/dataset.json")]
    with open(data_dir / "cfq/expected_pairs.tsv", encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(found) == len(expected) >= 8
    for row, pair in zip(found, expected, strict=True):
        assert " ".join(row.source) == pair["encode"]
        assert " ".join(row.target) == pair["decode"]
    indices = json.loads((data_dir / "cfq/splits/hand_made.json").read_text(encoding="utf-8"))
    splits = cfq.split_rows(found, indices, "hand_made.json")
    assert splits == {"train": found[:4], "dev": found[4:6], "test": found[6:8]}
    with pytest.raises(DataDamaged, match=r"hand_made\.json: not of this dataset\.json of 7 rows"):
        cfq.split_rows(found[:7], indices, "hand_made.json")


def test_a_line_end_may_be_written_as_two_characters():
    assert cfq.query_tokens("WHERE {\\nM1 a ns:m.0 }") == ("WHERE", "{", "M1", "a", "m_0", "}")


def write(folder, rows, splits):
    (folder / "cfq/splits").mkdir(parents=True)
    entries = [
        {
            "questionPatternModEntities": f'Did M{n} "x"',
            "other": n,
            "sparqlPatternModEntities": f"SELECT count(*) WHERE {{\nM{n} a ns:b\n}}",
        }
        for n in range(rows)
    ]
    (folder / "cfq/dataset.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / "cfq/splits/mcd1.json").write_text(json.dumps(splits), encoding="utf-8")


def test_splits_must_have_the_published_sizes(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    write(tmp_path, 4, {"trainIdxs": [3, 0], "devIdxs": [1], "testIdxs": [2]})
    with pytest.raises(DataDamaged, match=r"\(2, 1, 1\) rows, expected \(95743, 11968, 11968\)"):
        tasks.create("cfq").splits()
    monkeypatch.setitem(cfq.SIZES, "mcd1", (2, 1, 1))
    task = tasks.create("cfq")
    assert [row.source[1] for row in task.split("train")] == ["M3", "M0"]
    assert task.split("dev")[0].source == ("Did", "M1", '"', "x", '"')
    assert task.split("dev")[0].target[:5] == ("SELECT", "count", "(", "*", ")")


@pytest.mark.official
def test_official_rows_over_wikidata(data_dir):
    names = sorted((data_dir / "mcwq").rglob("*.txt*"))
    sizes = {"mcd1/dev.en.txt": 5_408, "mcd1/test.en.txt": 5_310}
    for path in names:
        name = path.relative_to(data_dir / "mcwq").as_posix().removesuffix(".gz")
        rows = mcwq.read_rows(name)
        assert len(rows) == sizes.get(name, len(rows))
        for row, line in zip(rows, unpacked(path).decode().split("\n"), strict=False):
            parts = [" ".join(row.source), " ".join(row.target)]
            assert "IN: {} OUT: {}".format(*parts).split() == line.split()
            assert row.category in ("ASK", "SELECT")
    assert len(names) >= 2
    assert len(mcwq.DATA_FILES) == 48


@pytest.mark.parametrize(
    ("name", "command"),
    [("cfq", "python -m tasks.fetch cfq"), ("mcwq", "python -m tasks.fetch mcwq")],
)
def test_missing_files_name_the_command(tmp_path, monkeypatch, name, command):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    with pytest.raises(DataMissing, match=command):
        tasks.create(name).splits()
