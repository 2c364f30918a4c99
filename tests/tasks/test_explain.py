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


def test_an_explanation_has_the_numbers():
    task = tasks.create("word_problem", group="Z2", train_lengths=[1, 4], test_lengths=[6])
    lines = list(explain.explain(task))
    text = "\n".join(lines)
    assert "labels: 2 (0 1)" in text
    assert "published: " in text
    longer = lines[-1]
    # Of six fair bits of parity each guess is right with 1/64.
    assert "chance 0.016" in longer
    assert longer.endswith("0 rows are among the first 100,000 of train")
    (iid,) = [line for line in lines if line.startswith("iid")]
    # There are thirty words of one to four bits, and train has seen them all.
    assert "1,000 rows are among" in iid


@pytest.mark.parametrize(
    "name", [n for n in tasks.TASKS if issubclass(tasks.task_class(n), LengthTask)]
)
def test_every_generated_task_is_explained_in_a_few_lines(name):
    console = Console(file=io.StringIO(), width=120)
    task = tasks.create(name, iid_rows=8, rows_per_test_length=1)
    show.show(task, console)
    assert task.about.source in console.file.getvalue().replace("\n    ", " ")
    assert len(list(explain.explain(task))) <= 18


def test_rows_without_an_end_are_not_exported(tmp_path):
    words = ["prefix_sums", "--split", "train", "--output", str(tmp_path / "rows")]
    with pytest.raises(ValueError, match="has no end"):
        export.main(words)
    export.main([*words, "train_rows=3"])
    assert len((tmp_path / "rows").read_text().splitlines()) == 3
