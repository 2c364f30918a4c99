"""Published rows of puzzles, and puzzles of our own, which have one solution each."""

from __future__ import annotations

import collections

import numpy as np
import pytest

import tasks
from tasks.puzzles.maze import distances, marked, turned
from tasks.puzzles.solving import solve
from tasks.puzzles.sudoku import BOXES, rearranged

COMPARED = ("sudoku_augment.tsv", "dihedral.tsv", "maze_unique.tsv")


def grid_of(text):
    return np.array([0 if cell in ".0" else int(cell) for cell in text]).reshape(1, 9, 9)


def test_sudoku_is_rearranged_as_published(rows_of):
    """The draws come in the published order: digits, coin, bands and lines, stacks and columns."""
    for row in rows_of("sudoku_augment.tsv")["sudoku_augment"]:
        generator = np.random.RandomState(int(row["numpy_seed"]))
        digits = np.concatenate([[0], generator.permutation(np.arange(1, 10))])
        coin = generator.rand() < 0.5
        places = [
            np.concatenate([3 * n + generator.permutation(3) for n in generator.permutation(3)])
            for _ in range(2)
        ]
        for given, expected in (
            ("question", "augmented_question"),
            ("answer", "augmented_answer"),
        ):
            found = rearranged(
                grid_of(row[given]),
                digits=digits[None],
                transpose=np.array([coin]),
                lines=places[0][None],
                columns=places[1][None],
            )
            assert (found == grid_of(row[expected])).all()


@pytest.mark.parametrize("size", BOXES)
def test_sudoku_has_one_solution_in_every_form(size):
    task = tasks.create("sudoku", size=size, puzzles=3, valid_puzzles=2, test_puzzles=2)
    rows = [*task.split("train")[:6], *task.split("test")]
    for row in rows:
        question = [0 if cell == "." else int(cell) for cell in row.source]
        (solution,) = solve(question, BOXES[size], limit=2)
        assert tuple(map(str, solution)) == row.target
        assert row.difficulty == question.count(0)
    assert len({row.source for row in rows}) == len(rows)
    with pytest.raises(ValueError, match="twice"):
        solve([1, 1] + [0] * (size**2 - 2), BOXES[size], limit=1)


def test_grids_turn_as_published(rows_of):
    for row in rows_of("dihedral.tsv")["dihedral"]:
        grid = np.arange(9).reshape(1, 3, 3)
        found = turned(grid, np.array([int(row["id"])]))
        assert found.ravel().tolist() == [int(n) for n in row["result_of_0..8"].split()]
        assert (turned(found, np.array([int(row["inverse"])])) == grid).all()


def test_mazes(rows_of):
    for row in rows_of("maze_unique.tsv")["maze_unique"]:
        assert marked(row["question"], width=int(row["size"])) == row["answer"]
        assert row["answer"].count("o") + 1 == int(row["path_length"])
    with pytest.raises(ValueError, match="one shortest path"):
        marked("S..G".ljust(8, ".").replace("S..G", "S.#G") + "....", width=4)


def test_mazes_of_our_own_have_one_shortest_path_of_enough_steps():
    task = tasks.create("maze", side=9, puzzles=40, valid_puzzles=10, test_puzzles=10)
    made = task.split("train").arrays(np.arange(200))
    mazes = made.source.reshape(-1, 9, 9)
    steps, paths = distances(mazes != 0, mazes == 2)
    assert (paths[mazes == 3] == 1).all()
    assert (steps[mazes == 3] >= 9).all()
    assert ((made.target == 4).sum(axis=1) + 1 == steps[mazes == 3]).all()
    # Each maze comes in its eight forms, which all count as one of its kind.
    forms = collections.Counter(row.tobytes() for row in made.source)
    assert 40 < len(forms) <= 320
