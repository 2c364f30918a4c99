"""What is printed is what was meant to be, at any width."""

import io
import random
import subprocess
import sys

import pytest
from rich.console import Console
from rich.progress import DownloadColumn, MofNCompleteColumn

from tasks.base.console import PlainConsole, WholeTable, duration, make_progress, say

HOSTILE = ["[a-m]*.txt", "[/x]", "[bold]", "a\\", "\\[red]", ":cat:", "[link=x]y", "[]", "[[1]"]


def rendered(table, width, console=Console):
    stream = io.StringIO()
    console(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("console", [Console, PlainConsole])
@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_text(text, console):
    table = WholeTable(title=text)
    table.add_column(text)
    table.add_row(f"cell {text}")
    lines = rendered(table, 60, console)
    assert lines.count(text) == 3
    stream = io.StringIO()
    say(console(file=stream, width=60), text)
    assert stream.getvalue() == text + "\n"
    if console is PlainConsole:
        stream = io.StringIO()
        console(file=stream, width=60).print(text)
        assert stream.getvalue() == text + "\n"


def test_a_long_line_is_neither_cut_nor_wrapped():
    stream = io.StringIO()
    say(PlainConsole(file=stream, width=40), "word " * 30 + "\nnext\x1b[1m")
    assert stream.getvalue() == "word " * 30 + "\nnext\\x1b[1m\n"


def make_table():
    table = WholeTable(title="of models", box=None, pad_edge=False)
    table.add_column("setting")
    for title in ("parameters of the model", "MACs/token"):
        table.add_column(title, justify="right")
    table.add_row("transformer learning_rate=0.00031622776601683794", "11,345,678", "53,712,345")
    table.add_row("moeut", "1", "2")
    return table


def test_titles_are_wrapped_then_names_then_rows_are_blocks():
    name = "transformer learning_rate=0.00031622776601683794"
    assert rendered(make_table(), 90).splitlines() == [
        "of models",
        f"{'setting':50}parameters of the model  MACs/token",
        f"{name:50}{'11,345,678':>23}  53,712,345",
        f"{'moeut':50}{'1':>23}  {'2':>10}",
    ]
    titles = rendered(make_table(), 75).splitlines()
    assert [line.split() for line in titles[1:4]] == [
        ["parameters", "of"],
        ["setting", "the", "model", "MACs/token"],
        [*name.split(), "11,345,678", "53,712,345"],
    ]
    assert [line.split() for line in rendered(make_table(), 62).splitlines()[4:6]] == [
        ["transformer", "11,345,678", "53,712,345"],
        ["learning_rate=0.00031622776601683794"],
    ]
    assert rendered(make_table(), 50).splitlines() == [
        "of models",
        "setting transformer ",
        "learning_rate=0.00031622776601683794",
        "  parameters of the model  11,345,678",
        "  MACs/token               53,712,345",
        "setting moeut",
        "  parameters of the model  1",
        "  MACs/token               2",
    ]


def test_no_number_or_word_is_cut_at_any_width():
    draw = random.Random(0)
    for width in range(24, 200, 8):
        columns = draw.randint(1, 9)
        table = WholeTable(title="numbers")
        for column in range(columns):
            table.add_column(f"column {column}", justify="left" if column == 0 else "right")
        cells = []
        for _ in range(3):
            row = [f"{draw.randint(0, 10 ** draw.randint(1, 9)):,}" for _ in range(columns)]
            table.add_row(*row)
            cells += row
        text = rendered(table, width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        words = text.replace("│", " ").replace("┃", " ").split()
        for cell in cells:
            assert cell in words, (width, text)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_progress_cuts_neither_names_nor_numbers(width):
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=True, width=width, color_system=None)
    name = "1/14 scan/template_split/tasks_train_template_[a-m]_around_right.txt"
    with make_progress(console, DownloadColumn, MofNCompleteColumn) as progress:
        progress.add_task(name, total=123_456_789, completed=98_765_432)
        progress.refresh()
        shown = stream.getvalue()
    assert "…" not in shown
    assert "98.8/123.5 MB" in shown
    assert "98765432/123456789" in shown
    if width == 200:
        assert name in shown


def test_rich_lets_the_reader_leave():
    """Its own consoles end the process with 1."""
    code = (
        "from tasks.base.command_line import exit_with\n"
        "from tasks.base.console import make_console\n"
        "def main():\n"
        "    console = make_console()\n"
        "    for n in range(100_000): console.print('a line')\n"
        "exit_with(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(timeout=60), error) == (75, b"")


def test_duration():
    assert [duration(s) for s in (0.4, 59.6, 200, 7500, 359_990, 4.5e8)] == [
        "0 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
        "99 h 59 min",
        "5,208 days",
    ]
