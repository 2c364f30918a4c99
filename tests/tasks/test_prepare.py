"""Prepare: the table it prints, what it refuses, and the checks it makes."""

from __future__ import annotations

import json

import pytest

import tasks
from tasks import export, menu, prepare, show
from tasks.base import command_line
from tasks.base.options import describe
from tasks.language.corpora import CORPORA
from tasks.language.task import Language


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """Words that name a small corpus."""
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(300)))
    return [
        "corpus=files",
        f"files={json.dumps([str(path)])}",
        "tokenizer=bytes",
        "validation_fraction=0.1",
        "test_fraction=0.1",
        "context_length=16",
    ]


def cells(text: str, split: str) -> list[str]:
    return next(line for line in text.splitlines() if line.split()[:1] == [split]).split()


def test_the_table_has_what_each_split_holds(words, capsys):
    prepare.main([*words, "--workers", "1"])
    text = capsys.readouterr().out
    task = menu.task_from_words("language", words)
    for name, split in task.splits().items():
        documents, size, tokens = split.num_documents, split.num_bytes, split.num_tokens
        assert tokens == size + documents + 1
        ratio = f"{size / tokens:.3f}"
        assert cells(text, name) == [name, f"{documents:,}", "0", f"{tokens:,}", f"{size:,}", ratio]
    assert task.data_hash() in text
    assert str(task.folder()) in text
    assert "parts: 1 of 1" in text
    assert "a hash of each document (validation_fraction 0.1, test_fraction 0.1)" in text


def test_one_small_text_is_prepared_by_naming_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i}\nhas {i * i} words." for i in range(2000)))
    words = ["corpus=files", f"files={path}", "tokenizer=bytes"]
    with pytest.raises(ValueError, match=r"unless task\.documents is paragraphs or a number"):
        prepare.main(words)
    files = [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()]
    assert [entry for entry in files if ".lease" not in entry.parts] == []
    prepare.main([*words, "documents=paragraphs"])
    text = capsys.readouterr().out
    counts = {name: int(cells(text, name)[1].replace(",", "")) for name in ("train", "test")}
    assert 1500 < counts["train"] < 1700
    assert 150 < counts["test"] < 250


def test_check_reads_every_file_again(words, capsys):
    prepare.main([*words, "--check"])
    assert "6 files read: all as they were packed" in capsys.readouterr().out
    folder = menu.task_from_words("language", words).folder()
    path = folder / "test/00000.tokens"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(tasks.DataDamaged, match=r"test/00000\.tokens"):
        prepare.main([*words, "--check"])


def test_help_teaches_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        prepare.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "python -m tasks.prepare corpus=c4" in text
    for name, option in describe(Language).items():
        assert f"  {name}: " in text
        assert option.doc in " ".join(text.split())
    for name, entry in CORPORA.items():
        assert f"  {name}: {entry.summary}" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["corpsu=stdlib"], "did you mean 'corpus'"),
        (["--workers", "0"], "--workers=0: must be at least 1"),
        (["--worker", "x"], "invalid int value"),
        (["tokenizer=bytes"], "given twice"),
        (["boundary=non"], "did you mean 'none'"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(
    words, tmp_path, capsys, extra, message
):
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda: prepare.main([*words, *extra]))
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.strip().splitlines()) == 1
    assert message in output.err
    assert not (tmp_path / "cache").exists()


def test_show_prints_splits_and_windows_as_text(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    show.main(["language", *words, "--examples", "1"])
    text = capsys.readouterr().out
    task = menu.task_from_words("language", words)
    assert "kind: language_modelling" in text
    for name, split in task.splits().items():
        assert f"{name}: {len(split):,} windows of 16 tokens" in text
    assert "'number " in text


def test_export_refuses_a_task_without_rows(words, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.run(
            lambda: export.main(["language", *words, "--split", "test", "--output", "-"])
        )
    assert end.value.code == 2
    assert "has windows of tokens and no rows to export" in capsys.readouterr().err
