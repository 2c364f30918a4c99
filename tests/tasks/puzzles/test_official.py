"""The official sets of puzzles: which lines are read, and what they become."""

from __future__ import annotations

import dataclasses
import gzip

import numpy as np
import pytest

import tasks
from tasks.base.data_files import DataDamaged, DataMissing
from tasks.base.options import OptionError
from tasks.base.storage import sha256_of
from tasks.puzzles import official
from tasks.puzzles.maze import labels_of

SOLUTION = "123456789456789123789123456214365897365897214897214365531642978642978531978531642"


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Return a function that puts a file in the place of an official one."""
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))

    def write(path, rows, *, packed=False):
        text = "source,question,answer,rating\n" + "".join(f"a,{q},{s},3\n" for q, s in rows)
        data = text.encode()
        goal = tmp_path / (f"{path}.gz" if packed else path)
        goal.parent.mkdir(exist_ok=True)
        goal.write_bytes(gzip.compress(data) if packed else data)
        file = dataclasses.replace(official.DATA_FILES[path], sha256=sha256_of(data))
        monkeypatch.setitem(official.DATA_FILES, path, file)

    return write


def sudokus(count):
    """Return puzzles of one solution, told apart by where their one blank is."""
    return [(SOLUTION[:n] + "." + SOLUTION[n + 1 :], SOLUTION) for n in range(count)]


@pytest.mark.parametrize("packed", [False, True])
def test_sudoku_takes_other_lines_for_train_and_valid_and_spreads_those_of_test(put, packed):
    put("sudoku_extreme/train.csv", sudokus(40), packed=packed)
    put("sudoku_extreme/test.csv", sudokus(81), packed=packed)
    options = {"puzzles": 12, "valid_puzzles": 8, "test_puzzles": 27, "augment": False}
    task = tasks.create("sudoku_extreme", **options)
    blanks = {
        name: [row.source.index(".") for row in task.split(name)] for name in task.split_names()
    }
    assert len(set(blanks["train"] + blanks["valid"])) == 20
    assert max(blanks["train"] + blanks["valid"]) < 40
    assert blanks["test"] == list(range(0, 81, 3))
    assert {row.target for name in blanks for row in task.split(name)} == {tuple(SOLUTION)}
    other = tasks.create("sudoku_extreme", **options, seed=1)
    assert [row.source.index(".") for row in other.split("train")] != blanks["train"]
    assert other.split("test")[:] == task.split("test")[:]


def test_train_sees_a_puzzle_of_the_file_in_other_forms(put):
    put("sudoku_extreme/train.csv", sudokus(2))
    put("sudoku_extreme/test.csv", sudokus(1))
    task = tasks.create("sudoku_extreme", puzzles=1, valid_puzzles=1, test_puzzles=1)
    rows = task.split("train")[:50]
    assert len({row.source for row in rows}) == 50
    for row in rows:
        grid = np.array(row.target).reshape(9, 9)
        assert all(len(set(line)) == 9 for line in [*grid, *grid.T])
        assert row.source.count(".") == 1


def test_maze_hard_reads_spaces_as_free_cells(put):
    maze = [["#"] * 30 for _ in range(30)]
    maze[0][:6] = "S    G"
    question = "".join(map("".join, maze))
    answer = question.replace("S    G", "SooooG")
    for name in ("train", "test"):
        put(f"maze_hard/{name}.csv", [(question, answer)] * 3)
    task = tasks.create("maze_hard", puzzles=2, valid_puzzles=1, test_puzzles=3)
    row = task.split("test")[2]
    assert "".join(row.source[:7]) == "S....G#"
    assert "".join(row.target[:7]) == "SooooG#"
    made = task.split("train").arrays(np.arange(40))
    assert (labels_of(made.source.reshape(-1, 30, 30)) == made.target.reshape(-1, 30, 30)).all()
    assert len(np.unique(made.source, axis=0)) == 8


def test_what_does_not_fit_is_refused(put, tmp_path):
    with pytest.raises(DataMissing, match=r"python -m tasks\.fetch sudoku_extreme"):
        tasks.create("sudoku_extreme").splits()
    put("sudoku_extreme/train.csv", sudokus(3))
    put("sudoku_extreme/test.csv", [*sudokus(2), (SOLUTION[:-1], SOLUTION)])
    few = {"puzzles": 2, "valid_puzzles": 1, "test_puzzles": 3}
    with pytest.raises(DataDamaged, match=r"test\.csv:4: expected source, question"):
        tasks.create("sudoku_extreme", **few).split("test")[:]
    with pytest.raises(OptionError, match=r"task\.test_puzzles=4: must be at most 3"):
        tasks.create("sudoku_extreme", **few | {"test_puzzles": 4}).split("test")[:]
    with pytest.raises(OptionError, match=r"task\.puzzles=3: must be at most 3, valid_puzzles"):
        tasks.create("sudoku_extreme", **few | {"puzzles": 3}).split("train")[:1]
    put("sudoku_extreme/train.csv", [(SOLUTION.replace("1", "x"), SOLUTION)] * 3)
    with pytest.raises(DataDamaged, match="a cell that is none of"):
        tasks.create("sudoku_extreme", **few).split("train")[:1]
    put("sudoku_extreme/train.csv", [(SOLUTION, SOLUTION.replace("1", "."))] * 3)
    with pytest.raises(DataDamaged, match="an answer with a blank"):
        tasks.create("sudoku_extreme", **few).split("train")[:1]
    (tmp_path / "sudoku_extreme/train.csv").write_text("a,b,c,d\n")
    with pytest.raises(DataDamaged, match=r"damaged: SHA-256 .* tasks\.fetch sudoku_extreme"):
        tasks.create("sudoku_extreme", **few).split("train")[:1]
