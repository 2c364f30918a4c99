"""What the menu and the explanation of a task say."""

import io

import pytest
from rich.console import Console

import tasks
from tasks import explain, export, show
from tasks.base.lengths import LengthTask


def test_the_menu_has_every_task_with_its_family(capsys):
    show.main([])
    text = capsys.readouterr().out
    for name in tasks.TASKS:
        assert f" {name} " in text
    assert "state tracking" in text
    assert "causal labelling" in text


def test_what_was_not_published_is_said():
    assert "published: none" in explain.about_lines(tasks.task_class("string_functions"))
    lines = explain.about_lines(tasks.task_class("cogs_variant"))
    assert sum(line.startswith("published: ") for line in lines) == 2


def test_an_explanation_has_the_numbers():
    task = tasks.create("word_problem", group="Z2", train_lengths=[1, 4], test_lengths=[6])
    console = Console(file=io.StringIO(), width=150)
    show.show(task, console)
    text = console.file.getvalue()
    assert "labels: 2: 0 1\n" in text
    assert "published: " in text
    assert "files: none\n" in text
    assert (
        "options: train_lengths=[1, 4], test_lengths=[6], valid_lengths=[], train_rows=null" in text
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    cells = {row[0]: row[1:] for row in rows if row}
    assert cells["train"] == ["endless", "1–4", *["–"] * 6]
    # Of six fair bits of parity each guess is right with 1/64.
    assert cells["longer"][:3] == ["200", "6", "0.016"]
    assert cells["longer"][-1] == "0 of the first 100,000"
    # There are thirty words of one to four bits, and train has seen them all.
    assert cells["iid"][-1] == "1,000 of the first 100,000"


def test_what_is_not_scored_is_told_from_a_label():
    maze = tasks.create("maze", side=5, puzzles=5, valid_puzzles=5, test_puzzles=5, least_path=2)
    assert "example (- where nothing is scored):" in explain.explain(maze)
    parity = tasks.create("prefix_sums", train_lengths=[1, 4], test_lengths=[6])
    assert "example (. where nothing is scored):" in explain.explain(parity)


@pytest.mark.parametrize(
    "name", [n for n in tasks.TASKS if issubclass(tasks.task_class(n), LengthTask)]
)
def test_every_generated_task_is_explained_in_a_few_lines(name):
    console = Console(file=io.StringIO(), width=120)
    task = tasks.create(name, iid_rows=8, rows_per_test_length=1)
    show.show(task, console)
    assert task.about.source in console.file.getvalue().replace("\n    ", " ")
    above, _, _ = console.file.getvalue().partition("splits; ")
    assert above.startswith(f"{name}: ")
    assert len(above.splitlines()) <= 25


def test_rows_without_an_end_are_not_exported(tmp_path):
    words = ["prefix_sums", "--split", "train", "--output", str(tmp_path / "rows")]
    with pytest.raises(ValueError, match="has no end"):
        export.main(words)
    export.main([*words, "train_rows=3"])
    assert len((tmp_path / "rows").read_text().splitlines()) == 3
