"""Export: what stands in a line, that the file task reads it back, and that a file is whole."""

from __future__ import annotations

import json

import pytest

import tasks
from tasks import export
from tasks.base import command_line
from tasks.base.task import Example


def test_a_line_has_source_target_category_and_difficulty():
    assert json.loads(export.to_json_line(Example(("a", "é"), ("b",), "kind", 3.0))) == {
        "source": "a é",
        "target": "b",
        "category": "kind",
        "difficulty": 3,
    }
    assert '"difficulty": 0.5' in export.to_json_line(Example(("a",), ("b",), "", 0.5))


def test_an_exported_split_is_read_back_to_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export.main(["scan", "variant=length", "--split", "test", "--output", "test.jsonl"])
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    assert len(lines) == 3920
    rows = tasks.create("scan", variant="length").split("test")
    assert json.loads(lines[7])["difficulty"] == len(rows[7].target)
    assert tasks.create("file", train="test.jsonl").split("train") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]


@pytest.mark.parametrize("kind", ["sequence_to_sequence", "classification"])
def test_rows_of_characters_are_read_back_to_the_same_rows(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.tsv").write_text(" a b\u2028\tvery  good\tkind\nabc\tx\n", encoding="utf-8")
    words = ["file", "train=my.tsv", f"kind={kind}", "tokenize=characters"]
    export.main([*words, "--split", "train", "--output", "out.jsonl"])
    rows = tasks.create("file", train="my.tsv", kind=kind, tokenize="characters").split("train")
    for tokenize in ("whitespace", "characters"):
        back = tasks.create("file", train="out.jsonl", kind=kind, tokenize=tokenize)
        assert back.split("train") == rows
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[1])["source"] == ["a", "b", "c"]  # one form in a file


def test_options_may_stand_after_the_flags(tmp_path):
    output = tmp_path / "test.jsonl"
    export.main(["scan", "--split", "test", "--output", str(output), "variant=length", "cutoff=40"])
    assert len(output.read_text().splitlines()) == 128


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("before\n")

    def lines():
        yield "one"
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        export.write_lines(path, lines())
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]


def test_output_to_stdout(capsys):
    export.main(["scan", "cutoff=40", "--split", "test", "--output", "-"])
    assert len(capsys.readouterr().out.splitlines()) == 128


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["scna", "--split", "test", "--output", "x"], ["task.name='scna'", "mean 'scan'"]),
        (["scan", "--split", "tset", "--output", "x"], ["task.split='tset'", "mean 'test'"]),
        (["scan", "varant=a", "--split", "test", "--output", "x"], ["mean 'variant'"]),
        (["scan", "cutoff=a", "--split", "test", "--output", "x"], ["task.cutoff='a'"]),
        (["scan", "cutoff", "--split", "test", "--output", "x"], ["expected option=value"]),
        (["scan", "--split", "test"], ["--output"]),
        (["scan", "--split", "test", "--output", "."], ["is a folder"]),
        (["scan", "--split", "test", "--output", "none/x"], ["no folder none"]),
        (["file", "--split", "train", "--output", "x"], ["task.train", "needs it"]),
        (["file", "train=no.tsv", "--split", "train", "--output", "x"], ["no such file"]),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(
    tmp_path, monkeypatch, capsys, words, parts
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda: export.main(words))
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_status_2_with_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda: export.main(["cogs", "--split", "gen", "--output", "x"]))
    assert end.value.code == 2
    assert "python -m tasks.fetch cogs" in capsys.readouterr().err


def test_interrupt_is_status_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        command_line.run(interrupted)
    assert end.value.code == 130
