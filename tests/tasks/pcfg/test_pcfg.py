"""PCFG SET: every delivered row obeys the rules, and its tests' scores count what they say."""

from __future__ import annotations

import collections

import pytest

import tasks
from tasks.base.data_files import DataMissing, unpacked
from tasks.base.metrics import Answers, Prediction
from tasks.base.options import OptionError
from tasks.base.scoring import score
from tasks.base.storage import git_sha1_of
from tasks.pcfg import like, official
from tasks.pcfg.localism import read_groups, replay
from tasks.pcfg.official import DATA_FILES, PcfgSet, read_rows
from tasks.pcfg.rules import HELD_OUT, TWIN, apply, exceptional, functions, has_pair


def lines(path):
    return unpacked(path).decode().splitlines()


@pytest.fixture(scope="module")
def pairs(data_dir):
    """Every delivered file of sources, with its targets."""
    folder = data_dir / "pcfg_set"
    found = {}
    for path in sorted(folder.rglob("*.src*")):
        name = path.relative_to(folder).as_posix().partition(".src")[0]
        targets = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name[:-3]}tgt")]
        stem = path.name.partition(".src")[0]
        targets = [p for p in path.parent.iterdir() if p.name in (f"{stem}.tgt", f"{stem}.tgt.gz")]
        if targets:
            found[name] = (lines(path), lines(targets[0]))
    return found


@pytest.mark.official
def test_every_delivered_row_obeys_the_rules(pairs):
    assert len(pairs) >= 13
    for name, (sources, targets) in pairs.items():
        assert len(sources) == len(targets)
        is_exception = name.endswith("_exception")
        for source, target in zip(sources, targets, strict=True):
            tokens = source.split()
            if is_exception:
                assert " ".join(apply(tokens)) != target
                tokens = exceptional(tokens)
            assert " ".join(apply(tokens)) == target


@pytest.mark.official
def test_the_training_set_of_iid_holds_most_rows_of_the_other_tests(pairs):
    iid = set(pairs["pcfgset/test"][0])
    dev = set(pairs["pcfgset/dev"][0])
    rows = {name: set(pairs[f"{name}/test"][0]) for name in ("systematicity", "productivity")}
    assert [len(iid & rows[name]) for name in rows] == [1_061, 1_170]
    # What is neither in its test nor in dev is in its training set.
    assert not dev & (rows["systematicity"] | rows["productivity"])
    recovered = set(pairs["pcfgset/train.recovered"][0])
    for found in rows.values():
        assert len(found & recovered) / len(found) > 0.85
    for name, found in rows.items():
        assert not found & set(pairs[f"{name}/train.recovered"][0])


@pytest.mark.official
@pytest.mark.parametrize("name", ["pcfgset", "productivity", "systematicity"])
def test_targets_of_recovered_rows_are_in_the_official_file_as_often(data_dir, pairs, name):
    official_targets = collections.Counter(lines(data_dir / f"pcfg_set/{name}/train.tgt.gz"))
    recovered = collections.Counter(pairs[f"{name}/train.recovered"][1])
    assert recovered <= official_targets
    sizes = {"pcfgset": 82_622, "productivity": 81_010, "systematicity": 82_168}
    assert official_targets.total() == sizes[name]


@pytest.mark.official
def test_what_each_test_holds_out(pairs):
    for source in pairs["systematicity/test"][0]:
        assert has_pair(source.split(), HELD_OUT)
    for source in pairs["systematicity/train.recovered"][0]:
        assert not has_pair(source.split(), HELD_OUT)
    counts = [functions(source.split()) for source in pairs["productivity/test"][0]]
    assert (min(counts), max(counts)) == (9, 35)
    assert max(functions(s.split()) for s in pairs["productivity/train.recovered"][0]) == 8


@pytest.mark.official
def test_official_tests_are_read(data_dir):
    sizes = {
        name: len(PcfgSet(test=name).read_test())
        for name in ("iid", "systematicity", "productivity", "substitutivity_primitive")
    }
    assert list(sizes.values()) == [9_721, 10_175, 11_333, 20_000]
    assert len(PcfgSet(test="overgeneralisation").read_test()) == 125
    with pytest.raises(DataMissing, match=r"train\.src.*python -m tasks\.fetch pcfg_set"):
        PcfgSet().splits()


def answers_of(task, rows, written):
    return score(task, Answers(rows, [Prediction(tokens) for tokens in written]))


@pytest.fixture
def recovered(data_dir, monkeypatch):
    """Put the part of a training set that is at hand in the place of the whole one."""
    for end in ("src", "tgt"):
        path = f"pcfg_set/pcfgset/train.recovered.{end}"
        file = tasks.DataFile(path, "", None)
        monkeypatch.setitem(DATA_FILES, f"pcfgset/train.{end}", file)
        ratio = "overgeneralisation/train_pcfg_ratio=0.001"
        for other in ("substitutivity/primitive/train", ratio):
            monkeypatch.setitem(DATA_FILES, f"{other}.{end}", file)


@pytest.mark.official
def test_substitutivity_is_scored_by_consistency(recovered):
    task = PcfgSet(test="substitutivity_primitive")
    rows = task.split("test")[:8]
    for first, twin in zip(rows[::2], rows[1::2], strict=True):
        assert first.target == twin.target
        assert [t.removesuffix(TWIN) for t in twin.source] == list(first.source)
    wrong = ("A1",)
    written = [rows[0].target, rows[1].target, rows[2].target, wrong, wrong, wrong, wrong, ("B1",)]
    table = answers_of(task, rows, written).tables["consistency"]
    assert table == {
        "all pairs": {"share": 0.5, "rows": 4},
        "first right": {"share": 0.5, "rows": 2},
        "first wrong": {"share": 0.5, "rows": 2},
    }
    # A pair of which one row was scored counts in no share.
    table = answers_of(task, rows[:3], written[:3]).tables["consistency"]
    assert table["all pairs"]["rows"] == 1


@pytest.mark.official
def test_overgeneralisation_tells_the_rule_from_the_exception(recovered):
    task = PcfgSet(test="overgeneralisation")
    rows = task.split("test")[:4]
    written = [apply(rows[0].source), rows[1].target, rows[2].target, ("A1",)]
    scores = answers_of(task, rows, written)
    table = scores.tables["rule and exception"]
    assert {name: entry["share"] for name, entry in table.items()} == {
        "rule": 0.25,
        "exception": 0.5,
    }
    assert scores.metrics["exact_match"] == 0.5
    original = read_rows("overgeneralisation/test_pcfg_ratio=0.001_original")
    assert [row.target for row in original][:4] == [row.metadata["other"] for row in rows]


@pytest.mark.official
def test_localism_ends_in_the_target_if_every_step_is_right(data_dir, recovered):
    file = DATA_FILES["localism/unrolled_test.tsv"]
    groups = read_groups(lines(data_dir / f"{file.path}.gz"), file.path)
    assert len(groups) == 9_567
    ends = replay(groups, lambda sources: [apply(source) for source in sources])
    assert ends == [group.target for group in groups]
    # A model that echoes wrongly is inconsistent where an echo is inside.
    ends = replay(
        groups[:50], lambda rows: [("A1",) if "echo" in row else apply(row) for row in rows]
    )
    assert 0 < sum(e == g.target for e, g in zip(ends, groups, strict=False)) < 50
    task = PcfgSet(test="localism")
    rows = official.group_rows(groups[:3])
    written = [row.target for row in rows[:-1]] + [("A1",)]
    table = answers_of(task, rows, written).tables["localism"]
    shares = {name: round(entry["share"], 3) for name, entry in table.items()}
    assert shares == {"all steps right": 1.0, "whole right": 0.667, "both": 0.667}


def test_localism_compares_an_answer_with_that_of_its_functions_one_by_one():
    """The model fails at two sources; what it is asked is asked once."""
    groups = read_groups(
        [
            "unrolled\trepeat A B \t*1",
            "unrolled\techo *1\tA B A B B",
            "original\techo repeat A B\tA B A B B",
            "unrolled\tcopy A B \t*1",
            "unrolled\trepeat *1\tA B A B",
            "original\trepeat copy A B\tA B A B",
            "unrolled\trepeat A B \t*1",
            "unrolled\trepeat *1\tA B A B A B A B",
            "original\trepeat repeat A B\tA B A B A B A B",
        ],
        "a file",
    )
    rows = [row for row in official.group_rows(groups) if row.category == "whole"]
    asked = []

    def model(source):
        if source in (("repeat", "repeat", "A", "B"), ("echo", "A", "B", "A", "B")):
            return ("A1",)
        return apply(source)

    def ask(sources):
        asked.extend(sources)
        return [model(source) for source in sources]

    answers = Answers(rows, [Prediction(model(row.source)) for row in rows])
    table = PcfgSet(test="localism").asked_tables(answers, ask)["localism, one by one"]
    assert {name: (entry["share"], entry["rows"]) for name, entry in table.items()} == {
        "same answer": (1 / 3, 3),
        "same answer, it is right": (1 / 2, 2),
        "same answer, it is wrong": (0, 1),
        "right one by one": (2 / 3, 3),
    }
    assert len(asked) == len(set(asked)) == 4
    assert PcfgSet(test="iid").asked_tables(answers, ask) == {}


def test_files_are_pinned_by_their_names_in_git(data_dir):
    path = data_dir / "pcfg_set/pcfgset/dev.src"
    assert DATA_FILES["pcfgset/dev.src"].git_sha1 == git_sha1_of(path.read_bytes())


@pytest.mark.parametrize("test", ["iid", "systematicity", "productivity"])
def test_generated_rows_obey_the_rules_and_are_apart(test):
    task = tasks.create("string_functions", test=test, train_rows=2_000, other_rows=200)
    rows = [row for split in task.splits().values() for row in split]
    assert len({row.source for row in rows}) == len(rows)
    for row in rows:
        assert apply(row.source) == row.target
        assert functions(row.source) == row.difficulty
        assert len(row.target) <= 250
    if test == "systematicity":
        assert not any(has_pair(row.source, HELD_OUT) for row in task.split("train"))
        assert all(has_pair(row.source, HELD_OUT) for row in task.split("test"))
    if test == "productivity":
        assert min(row.difficulty for row in task.split("test")) == 9
    assert (
        task.data_hash()
        == tasks.create("string_functions", test=test, train_rows=2_000, other_rows=200).data_hash()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": "productivity", "test_functions": [3, 9]}, "more than in train"),
        ({"train_functions": [1, 1]}, "the test is of pairs"),
        ({"symbols": 1}, "2 to 520"),
        ({"train_functions": [2, 1]}, "fewest and most"),
    ],
)
def test_options_that_make_no_test_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        tasks.create("string_functions", **options)


def test_too_few_rows_are_refused_with_their_number(monkeypatch):
    monkeypatch.setattr(like, "TRIES", 1)
    task = tasks.create("string_functions", train_rows=50, other_rows=50)
    with pytest.raises(OptionError, match=r"train_rows=50: must be at most \d+, as many as train"):
        task.splits()
