"""SCAN: the grammar, the experiments against the official files, and what a split promises."""

from __future__ import annotations

import collections
import csv
import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest

import tasks
from tasks import fetch, scan
from tasks.base import data_files, storage
from tasks.base.task import Example

OFFICIAL = {
    "length": "length_split/tasks_{}_length.txt",
    "add_prim_jump": "add_prim_split/tasks_{}_addprim_jump.txt",
    "add_prim_turn_left": "add_prim_split/tasks_{}_addprim_turn_left.txt",
    **{
        f"template_{name}": f"template_split/tasks_{{}}_template_{name}.txt"
        for name in ("around_right", "opposite_right", "right", "jump_around_right")
    },
    **{
        f"filler_num{number}": f"filler_split/tasks_{{}}_filler_num{number}.txt"
        for number in range(4)
    },
}
SIZES = {
    "length": (16990, 3920),
    "add_prim_jump": (14670, 7706),
    "add_prim_turn_left": (21890, 1208),
    "template_around_right": (15225, 4476),
    "template_opposite_right": (15225, 4476),
    "template_right": (15225, 4476),
    "template_jump_around_right": (18528, 1173),
    "filler_num0": (15225, 1173),
    "filler_num1": (16290, 1173),
    "filler_num2": (17391, 1173),
    "filler_num3": (18528, 1173),
}
# SHA-256 of the official files' lines in sorted order, for those whose own order has no rule.
SORTED_SHA256 = {
    ("length", "train"): "7ffb97f45029871c94bede7e723f7a4aa179eb99fe2b977a18283310422c719d",
    ("length", "test"): "3297fd0b676c391f7bc3a7385aa66a7fdf64f6f8e81ad584810c1d4ebd0eaa2c",
    ("add_prim_jump", "train"): "0683daacfdce23cf8ed6f5077feda21785e93ac82e0d11363a9280b7b0c6561e",
    ("add_prim_jump", "test"): "522454c6280eab957dfc4ea9579ef1d780a716ac34df09619970e1d98822d7e2",
    (
        "add_prim_turn_left",
        "train",
    ): "e0c26b51b6bba2658e02d69ad53fc15399842d57356d3551a3ed192bca0f9ad4",
    (
        "add_prim_turn_left",
        "test",
    ): "14dd6316d16204d2871678ee4bd35aba253416a9b4df36bb6dfdda153d46e549",
}


def sha256(lines: list[str]) -> str:
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def sources(rows: list[Example]) -> list[str]:
    return [" ".join(row.source) for row in rows]


# --- the language


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("look", "LOOK"),
        ("turn left", "L"),
        ("turn around right", "R R R R"),
        ("run around left", "L RUN L RUN L RUN L RUN"),
        ("walk opposite left thrice", "L L WALK L L WALK L L WALK"),
        ("jump twice and look right", "JUMP JUMP R LOOK"),
        ("jump twice after look right", "R LOOK JUMP JUMP"),
        (
            "walk opposite right thrice after run opposite right",
            "R R RUN R R WALK R R WALK R R WALK",
        ),
    ],
)
def test_interpretation(command, actions):
    names = {"L": "I_TURN_LEFT", "R": "I_TURN_RIGHT"}
    expected = tuple(names.get(word, f"I_{word}") for word in actions.split())
    assert scan.interpret(command) == expected


@pytest.mark.parametrize(
    "command",
    [
        "",
        "turn",
        "jump up",
        "twice",
        "jump thrice twice",
        "left jump",
        "turn opposite",
        "jump and",
        "look and look and look",
        "walk around opposite left",
    ],
)
def test_what_is_no_command_is_refused(command):
    with pytest.raises(ValueError, match="not a SCAN command"):
        scan.interpret(command)


def test_the_grammar_has_20910_commands_of_the_known_lengths():
    commands = scan.commands()
    assert len(commands) == len(set(commands)) == 20_910
    lengths = {len(scan.interpret(command)) for command in commands}
    assert lengths == {*range(1, 23), 24, 25, 26, 27, 28, 30, 32, 33, 36, 40, 48}
    assert len({word for command in commands for word in command.split()}) == 13


# --- the experiments


@pytest.mark.parametrize("variant", SIZES)
def test_rows_train_and_test_are_apart(variant):
    splits = tasks.create("scan", variant=variant).splits()
    assert tuple(len(rows) for rows in splits.values()) == SIZES[variant]
    assert not set(sources(splits["train"])) & set(sources(splits["test"]))
    assert all(row.difficulty == len(row.target) for rows in splits.values() for row in rows)


@pytest.mark.parametrize(("variant", "part"), SORTED_SHA256)
def test_sorted_lines_have_the_checksum_of_the_official_file(variant, part):
    rows = tasks.create("scan", variant=variant).split(part)
    lines = sorted(scan.format_line(row) for row in rows)
    assert sha256(lines) == SORTED_SHA256[variant, part]
    lines[0] = lines[0].replace("I_", "J_", 1)
    assert sha256(lines) != SORTED_SHA256[variant, part]


def official_lines(data_dir, path: str) -> list[str]:
    content = (data_dir / "scan" / path).read_bytes()
    assert hashlib.sha256(content).hexdigest() == scan.DATA_FILES[path].sha256
    return content.decode().splitlines()


@pytest.mark.official
def test_grammar_gives_the_official_list(data_dir):
    lines = official_lines(data_dir, "tasks.txt")
    rows = [Example(tuple(command.split()), scan.interpret(command)) for command in scan.commands()]
    assert sorted(lines) == sorted(scan.format_line(row) for row in rows)


@pytest.mark.official
def test_experiments_equal_the_official_files_as_multisets(data_dir):
    """Every file that is there; those that are not are covered by their checksums."""
    compared = 0
    for variant, template in OFFICIAL.items():
        splits = tasks.create("scan", variant=variant).splits()
        for part, rows in splits.items():
            path = template.format(part)
            if (data_dir / "scan" / path).is_file():
                expected = collections.Counter(official_lines(data_dir, path))
                found = collections.Counter(scan.format_line(row) for row in rows)
                assert found == expected, path
                found[next(iter(found))] -= 1
                assert found != expected
                compared += 1
    assert compared >= 2


@pytest.mark.official
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("variant", [name for name in OFFICIAL if name[0] in "tf"])
def test_template_and_filler_files_are_rebuilt_to_the_byte(data_dir, variant, part):
    """Their lines stand in the order of tasks.txt, so the checksum needs no copy of the file."""
    order = {line: number for number, line in enumerate(official_lines(data_dir, "tasks.txt"))}
    rows = tasks.create("scan", variant=variant).split(part)
    lines = sorted((scan.format_line(row) for row in rows), key=order.__getitem__)
    assert sha256(lines) == scan.DATA_FILES[OFFICIAL[variant].format(part)].sha256
    assert sha256(lines[:-1]) != scan.DATA_FILES[OFFICIAL[variant].format(part)].sha256


def test_taught_primitive_is_a_tenth_of_train():
    for variant, primitive in scan.TAUGHT_PRIMITIVES.items():
        commands = sources(tasks.create("scan", variant=variant).split("train"))
        assert commands.count(primitive) / len(commands) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("cutoff", [1, 10, 26, 33, 40])
def test_length_at_any_cutoff(cutoff):
    splits = tasks.create("scan", variant="length", cutoff=cutoff).splits()
    assert sum(len(rows) for rows in splits.values()) == 20_910
    assert max(len(row.target) for row in splits["train"]) <= cutoff
    assert min(len(row.target) for row in splits["test"]) > cutoff


@pytest.mark.golden
@pytest.mark.official
def test_length_resplits_equal_the_published_ones(golden_dir, data_dir):
    lengths = [
        len(line.split(" OUT: ")[1].split()) for line in official_lines(data_dir, "tasks.txt")
    ]
    with open(golden_dir / "data" / "scan_length_resplit_counts.tsv", newline="") as stream:
        table = list(csv.DictReader(stream, delimiter="\t"))
    assert len(table) >= 11
    for row in table:
        parts = scan.resplit_indices(lengths, int(row["cutoff"]))
        assert [len(part) for part in parts] == [
            int(row[name]) for name in ("train", "iid_valid", "ood")
        ]
        hashes = [hashlib.sha256(",".join(map(str, part)).encode()).hexdigest() for part in parts]
        assert hashes == [row[f"sha256_{name}_lines"] for name in ("train", "iid", "ood")]

    with open(golden_dir / "data" / "scan_length_resplit_rows.tsv", newline="") as stream:
        samples = list(csv.DictReader(stream, delimiter="\t"))
    for cutoff in (22, 26, 30):
        train, iid, _ = map(set, scan.resplit_indices(lengths, cutoff))
        for row in samples:
            line = int(row["line"])
            part = "train" if line in train else "iid" if line in iid else "ood"
            assert lengths[line] == int(row["out_len"])
            assert row[f"cutoff{cutoff}"].startswith(part)


@pytest.mark.official
def test_resplit_is_a_task_with_its_own_iid_split(data_dir, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(data_dir))
    task = tasks.create("scan", variant="length", cutoff=26, resplit=True)
    assert {name: len(rows) for name, rows in task.splits().items()} == {
        "train": 16_458,
        "iid": 1_828,
        "test": 2_624,
    }
    assert task.in_distribution_split == "iid"


@pytest.mark.official
def test_simple_is_read_from_the_official_files(data_dir, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(data_dir))
    task = tasks.create("scan", variant="simple")
    assert [len(rows) for rows in task.splits().values()] == [16_728, 4_182]
    assert task.in_distribution_split == "test"
    for row in task.split("test")[::50]:
        assert row.target == scan.interpret(" ".join(row.source))


# --- options


def test_official_training_set_is_whole_unless_asked():
    assert tasks.create("scan", variant="add_prim_jump").in_distribution_split is None


@pytest.mark.parametrize(("held_out", "count"), [(100, 100), (0.05, 660), (1, 1)])
def test_held_out_moves_distinct_commands_and_never_the_primitive(held_out, count):
    whole = tasks.create("scan", variant="add_prim_jump").splits()
    task = tasks.create("scan", variant="add_prim_jump", held_out=held_out)
    splits = task.splits()
    assert list(splits) == ["train", "iid", "test"]
    assert len(set(sources(splits["iid"]))) == len(splits["iid"]) == count
    assert sources(splits["train"]).count("jump") == 1467
    assert not set(sources(splits["train"])) & set(sources(splits["iid"]))
    assert splits["test"] == whole["test"]
    together = collections.Counter(sources(splits["train"]) + sources(splits["iid"]))
    assert together == collections.Counter(sources(whole["train"]))
    assert task.in_distribution_split == "iid"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variant": "lenght"}, "did you mean 'length'"),
        ({"variant": "length", "cutoff": 0}, "task.cutoff=0: must be between 1 and 40"),
        ({"variant": "length", "cutoff": 48}, "task.cutoff=48: must be between 1 and 40"),
        ({"variant": "add_prim_jump", "cutoff": 26}, "left out unless variant=length"),
        ({"variant": "template_right", "resplit": True}, "left out unless variant=length"),
        ({"variant": "length", "num": 8}, "left out unless variant=few_shot"),
        ({"variant": "few_shot", "num": 3}, "task.num=3: expected one of 1, 2, 4"),
        ({"variant": "length", "held_out": -1}, "task.held_out=-1"),
        ({"variant": "simple", "held_out": 5}, "task.held_out=5"),
        ({"variant": "length", "held_out": 5, "resplit": True}, "task.held_out=5"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        tasks.create("scan", **given)


@pytest.mark.parametrize("held_out", [1e6, 16_990, 2.5, 0.00001])
def test_impossible_held_out_is_refused(held_out):
    with pytest.raises(ValueError, match="whole number below 16990"):
        tasks.create("scan", variant="length", held_out=held_out).splits()


# --- official files that have no rule


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({"variant": "simple"}, "python -m tasks.fetch scan"),
        ({"variant": "mcd1"}, "python -m tasks.fetch scan"),
        ({"variant": "length", "resplit": True}, "python -m tasks.fetch scan"),
        (
            {"variant": "few_shot", "num": 8, "rep": 2},
            "python -m tasks.fetch scan/few_shot_split/tasks_train_fewshot_num8_rep2.txt",
        ),
    ],
)
def test_missing_files_are_named_with_the_command(given, command, tmp_path, monkeypatch):
    monkeypatch.delenv("MOEUT_DATA", raising=False)
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    with pytest.raises(data_files.DataMissing) as error:
        tasks.create("scan", **given).splits()
    assert str(error.value).endswith(command)


def place(monkeypatch, tmp_path, table: dict[str, bytes]) -> None:
    """Put files in place of official ones, with their checksums."""
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    for path, content in table.items():
        goal = tmp_path / "scan" / path
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_bytes(content)
        entry = replace(
            scan.DATA_FILES.get(path, scan.MCD_ARCHIVE),
            sha256=storage.sha256_of(content),
            rows=None,
        )
        if path in scan.DATA_FILES:
            monkeypatch.setitem(scan.DATA_FILES, path, entry)
        else:
            monkeypatch.setattr(scan, "MCD_ARCHIVE", entry)


def test_mcd_indices_count_lines_of_the_official_list_from_zero(tmp_path, monkeypatch):
    commands = ["jump", "walk twice", "run left", "look and look"]
    lines = "".join(
        scan.format_line(Example(tuple(c.split()), scan.interpret(c))) + "\n" for c in commands
    )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for number in (1, 2, 3):
            content = json.dumps({"trainIdxs": [2, 0], "testIdxs": [number]}).encode()
            member = tarfile.TarInfo(f"scan-splits/mcd{number}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    place(
        monkeypatch,
        tmp_path,
        {"tasks.txt": lines.encode(), "scan-splits.tar.gz": stream.getvalue()},
    )
    splits = tasks.create("scan", variant="mcd3").splits()
    assert sources(splits["train"]) == ["run left", "jump"]
    assert sources(splits["test"]) == ["look and look"]


def test_few_shot_keeps_its_shots_in_train(tmp_path, monkeypatch):
    commands = ["jump around right", "walk", "run", "look", "turn left", "jump left"]
    lines = "".join(
        scan.format_line(Example(tuple(c.split()), scan.interpret(c))) + "\n" for c in commands
    )
    path = "few_shot_split/tasks_train_fewshot_num1_rep3.txt"
    place(monkeypatch, tmp_path, {path: lines.encode()})
    splits = tasks.create("scan", variant="few_shot", rep=3, held_out=4).splits()
    assert "jump around right" in sources(splits["train"])
    assert len(splits["iid"]) == 4
    assert len(splits["test"]) == 1173


def test_malformed_line_is_refused(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, {"tasks.txt": b"IN: jump OUT: I_JUMP\njump\n"})
    with pytest.raises(data_files.DataDamaged, match=r"tasks\.txt:2: 'jump'"):
        scan.read_rows("tasks.txt")


def test_the_table_covers_every_official_file():
    assert len(scan.DATA_FILES) == 209
    assert (
        len({file.path for file in fetch.COLLECTIONS["scan"]})
        == len(fetch.COLLECTIONS["scan"])
        == 210
    )
    for variant, path in OFFICIAL.items():
        rows = tuple(scan.DATA_FILES[path.format(part)].rows for part in ("train", "test"))
        assert rows == SIZES[variant]
    for file in fetch.COLLECTIONS["scan"]:
        assert len(file.sha256) == 64
        assert file.url.startswith("https://")
    default = {file.path for file in fetch.COLLECTIONS["scan"] if file.by_default}
    assert "scan/tasks.txt" in default
    assert "scan/scan-splits.tar.gz" in default
    assert len(default) == 4
