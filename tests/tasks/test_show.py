"""Show: the numbers it prints about a task."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import tasks
from tasks import show
from tasks.base import command_line
from tasks.base.task import Example


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "train.tsv").write_text("a b\tyes\nc\tno\nc d\tno\n")
    (tmp_path / "test.tsv").write_text("a b\tyes\nc\tyes\ne [x]\tmaybe\n")
    return tasks.create(
        "file",
        train=str(tmp_path / "train.tsv"),
        test=str(tmp_path / "test.tsv"),
        kind="classification",
    )


def printed(task, **options) -> str:
    stream = io.StringIO()
    show.show(task, Console(width=150, file=stream), **options)
    return stream.getvalue()


def test_overlap_tells_same_source_from_same_row(toy):
    assert show.overlap(toy, "test") == {"same_source": 2, "same_row": 1}


def test_unseen_tokens_are_those_train_never_shows(toy):
    assert show.unseen_tokens(toy, "test") == (["[x]", "e"], ["maybe"])


def test_everything_is_printed(toy):
    text = printed(toy)
    assert "kind: classification" in text
    assert toy.data_hash() in text
    assert "4 source and 2 target tokens" in text
    row = next(line for line in text.splitlines() if "2: [x], e" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    # classes: chance 1/2; majority "no" is never right here; "maybe" cannot be written
    assert cells == ["test", "2", "1", "2: [x], e", "1: maybe", "66.67", "50.00", "0.00"]
    assert "2 (66.7 %)" in text  # share of "no" in train
    assert "e [x]\n    -> maybe" in text


def test_number_of_examples(toy):
    assert printed(toy, num_examples=1).count("->") == 3  # one of each split, and one before them
    assert printed(toy, num_examples=0).count("->") == 0


def test_examples_are_chosen_by_hash_not_by_place():
    rows = [Example((f"w{i}",), ("y",)) for i in range(50)]
    assert show.examples_of(rows, 3) == show.examples_of(rows[::-1], 3) != rows[:3]


def test_command_prints_a_task(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    show.main(["scan", "variant=add_prim_jump", "--examples", "1"])
    text = capsys.readouterr().out
    assert "14,670" in text
    assert "13,204" in text
    assert "7,706" in text
    assert "in-distribution split: none" in text


def test_without_its_files_a_task_is_still_explained(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda: show.main(["cfq", "variant=mcd2"]))
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out.startswith("cfq: CFQ: questions to queries")
    assert "published: mcd1 / mcd2 / mcd3" in output.out
    assert output.out.endswith("options: variant=mcd2\n")
    assert output.err.strip().endswith("fetch it with: python -m tasks.fetch cfq")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scam"], "did you mean 'scan'"),
        (["scan", "--examples", "-1"], "--examples=-1"),
        (["scan", "--example", "x"], "--examples: invalid int value"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, words, message):
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda: show.main(words))
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.strip().splitlines()) == 1
    assert message in output.err
