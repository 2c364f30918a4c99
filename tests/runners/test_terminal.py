"""Every command that prints tables shows each number of them whole, piped and at any width."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from runners import analyze, compare, evaluate, report, sweep
from runners.bench import __main__ as bench_command
from runners.reporting.drawer import Drawer
from tasks import show
from tasks.base.console import WholeTable

WIDTHS = (60, 80, 120, None)
"""Columns of the terminal; None: a pipe."""
LONGEST = 30
"""Characters of a word with a digit that has to stay whole; paths may be longer."""
STEADY = [0.81, 0.80, 0.82, 0.79, 0.83]


@pytest.fixture
def cells(monkeypatch):
    """Return the cells of all tables that are made."""
    found = []

    def add_row(table, *row, **options):
        found.extend(str(cell) for cell in row if cell is not None)
        add(table, *row, **options)

    add = WholeTable.add_row
    monkeypatch.setattr(WholeTable, "add_row", add_row)
    return found


@pytest.fixture
def at_width(monkeypatch):
    def set_width(width):
        monkeypatch.setenv("COLUMNS", str(width or 60))  # which a pipe does not heed
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr("sys.stdout.isatty", lambda: width is not None, raising=False)

    return set_width


@pytest.fixture
def shown_whole(cells, at_width, capsys):
    """Return a function that runs a command at every width and checks what it shows."""

    def check(main, *arguments, piped_as_tables=True):
        for width in WIDTHS:
            at_width(width)
            cells.clear()
            capsys.readouterr()
            assert main([str(each) for each in arguments]) in (0, None)
            output = capsys.readouterr().out
            assert "…" not in output
            assert "\x1b" not in output
            if width is None and not piped_as_tables:
                continue
            assert cells
            printed = Counter(re.split(r"[\s│┃]+", output))
            words = Counter(word for cell in cells for word in cell.split())
            assert {
                word: (count, printed[word])
                for word, count in words.items()
                if re.search(r"\d", word) and len(word) <= LONGEST and printed[word] < count
            } == {}

    return check


def long(variant, seed, data):
    """Make the numbers of a result long."""
    data["model"] |= {"parameters": 1_234_567_890, "macs_per_token": 98_765_432_109}
    data["tokens_seen"] = 123_456_789_012


@pytest.fixture
def directory(make_sweep):
    return make_sweep(transformer=STEADY, moeut=[0.9, "loss is nan", None, 0.7, 0.8], result=long)


def test_report(directory, shown_whole):
    shown_whole(report.main, directory, "--no-figures", piped_as_tables=False)


def test_compare(directory, make_sweep, shown_whole):
    other = make_sweep("other", a_variant_of_a_long_name=STEADY, result=long)
    shown_whole(compare.main, directory, other, "--no-figures", piped_as_tables=False)


def test_end_and_plan_of_a_sweep(directory, tmp_path, run_text, shown_whole):
    with Drawer() as drawer:
        shown_whole(
            lambda words: sweep._report(Path(*words), drawer, with_figures=False),
            directory,
            piped_as_tables=False,
        )
    file = tmp_path / "pair.yaml"
    text = "".join(f"  {line}\n" for line in run_text().strip().splitlines())
    grid = "parameters: {train.learning_rate: {values: [3.1622776601683794e-05, 0.001]}}\n"
    file.write_text(f"base:\n{text}{grid}seeds: 2\n")
    shown_whole(sweep.main, file, "--dry-run", f"--runs-dir={tmp_path / 'runs'}")


def test_evaluate(make_run, train, shown_whole, monkeypatch):
    directory = make_run("run", "train.steps=2", "train.warmup_steps=0", "evaluate.interval=null")
    assert train(directory) == "done"
    shown_whole(evaluate.main, directory)


def test_tasks(tmp_path, run_text, shown_whole):
    run_text()
    shown_whole(show.main)
    files = [f"{split}={tmp_path / split}.tsv" for split in ("train", "dev", "test")]
    shown_whole(show.main, "file", *files)


def test_benchmark(shown_whole):
    threads = torch.get_num_threads()
    try:
        options = ["--sizes", "tiny", "--prompts", "3", "--tokens", "2", "--batch", "2"]
        shown_whole(bench_command.main, "generate", *options, "--repeats", "1")
    finally:
        torch.set_num_threads(threads)


def test_analyze_prints_paths_on_lines_of_their_own(make_run, train, at_width, capsys):
    directory = make_run("run", "train.steps=2", "train.warmup_steps=0", "evaluate.interval=null")
    assert train(directory) == "done"
    at_width(60)
    assert analyze.main([str(directory), "--probe", "states", "--rows", "2"]) == 0
    assert f"{directory}: 1 tables and figures in {directory}/analysis/test\n" in (
        capsys.readouterr().out
    )
