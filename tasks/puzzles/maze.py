"""Mazes: mark the shortest path between two cells, where there is exactly one.

Cells are walls ``#`` or free ``.``, the start ``S`` or the goal ``G``; the label of a cell on the
path between them is ``o``, that of any other is the cell itself:

>>> text = "S..#" "##.#" "G..#" "####"
>>> print(marked(text, width=4))
Soo###o#Goo#####

Each cell is a wall with probability ``walls``. Start and goal are drawn among the free cells, the
goal among those that one shortest path of enough steps leads to. Train has each maze turned and
mirrored in eight ways. The official set, Maze-Hard, is the task ``maze_hard``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.options import require
from tasks.puzzles.base import PuzzleTask

CELLS = "#.SG"
WALL, FREE, START, GOAL, PATH = range(5)
ATTEMPTS = 200


def distances(free: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return steps from a start, and how many shortest paths there are (2 stands for more).

    Args:
        free: (N, H, W) bool.
        start: (N, H, W) bool, True at one cell of each maze.

    Returns:
        Both (N, H, W); steps are −1 where no path leads.
    """
    steps = np.where(start, 0, -1)
    paths = start.astype(np.int64)
    edge = paths
    step = 0
    while edge.any():
        step += 1
        around = np.zeros_like(edge)
        around[:, 1:] += edge[:, :-1]
        around[:, :-1] += edge[:, 1:]
        around[:, :, 1:] += edge[:, :, :-1]
        around[:, :, :-1] += edge[:, :, 1:]
        edge = np.where(free & (steps < 0), np.minimum(around, 2), 0)
        steps = np.where(edge > 0, step, steps)
        paths = paths + edge
    return steps, paths


def turned(grids: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Return square grids (N, n, n), each turned or mirrored in a way (N,).

    0 leaves it, 1 to 3 turn it by so many quarters against the clock, 4 mirrors left and right, 5
    top and bottom, 6 transposes, 7 mirrors at the other diagonal.
    """
    every = [np.rot90(grids, quarter, axes=(1, 2)) for quarter in range(4)]
    every += [grids[:, :, ::-1], grids[:, ::-1], grids.transpose(0, 2, 1)]
    every.append(grids[:, ::-1, ::-1].transpose(0, 2, 1))
    return np.choose(ways[:, None, None], every)


def labels_of(mazes: np.ndarray) -> np.ndarray:
    """Return mazes (N, H, W) with the shortest path marked.

    Raises:
        ValueError: no path, or more than one.
    """
    free = mazes != WALL
    steps, paths = distances(free, mazes == START)
    back, _ = distances(free, mazes == GOAL)
    goal = mazes == GOAL
    if (paths[goal] != 1).any():
        raise ValueError("expected one shortest path")
    length = steps[goal][:, None, None]
    inner = (mazes == FREE) & (steps >= 0) & (back >= 0) & (steps + back == length)
    return np.where(inner, PATH, mazes)


def marked(text: str, *, width: int) -> str:
    """Return a maze, line by line, with its shortest path marked."""
    maze = np.array([CELLS.index(cell) for cell in text]).reshape(1, -1, width)
    return "".join((*CELLS, "o")[cell] for cell in labels_of(maze).ravel().tolist())


@dataclass(frozen=True, kw_only=True)
class Maze(PuzzleTask):
    """The one shortest path through a random maze."""

    name: ClassVar[str] = "maze"
    difficulty_name: ClassVar[str] = "walls"
    about: ClassVar[About] = About(
        family="puzzles",
        hard="a path that is known at both ends and has to be found between them",
        source="Maze-Hard of arXiv 2506.21734; generator of locuslab/EqR 4d45856c",
        published=(
            "Maze-Hard (30 × 30, 1,000 mazes), whole grids: TRM 85.3 % (second-hand); not these "
            "mazes",
        ),
    )

    side: int = 15
    """Lines and columns."""
    walls: float = 0.37
    """Probability of a wall."""
    least_path: int | None = None
    """Fewest steps from start to goal; null: as many as the side is long."""
    puzzles: int = 1000
    """Mazes of train, each seen in eight forms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "side", self.side >= 4, "at least 4")
        require(self, "walls", 0 <= self.walls <= 0.5, "from 0 to 0.5")
        least = self.least_path
        fits = least is None or 1 <= least <= 2 * self.side
        require(self, "least_path", fits, f"1 to {2 * self.side}, or null")

    def symbols(self) -> tuple[str, ...]:
        """Return the cells."""
        return tuple(CELLS)

    def labels(self) -> tuple[str, ...]:
        """Return the cells, and the path."""
        return (*CELLS, "o")

    def cells(self) -> int:
        """Return the cells of the grid."""
        return self.side**2

    def difficulty(self, question: np.ndarray) -> float:
        """Return the walls of a question (cells,), to the next ten."""
        return float(round((question == WALL).sum(), -1))

    def make(self, split: str, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return questions and answers of some mazes of a split, both (N, cells)."""
        draws = Draws(f"maze {self.seed} {split}", numbers)
        side, count = self.side, len(numbers)
        least = self.side if self.least_path is None else self.least_path
        mazes = np.zeros((count, side, side), dtype=np.int64)
        left = np.arange(count)
        for attempt in range(ATTEMPTS):
            draw = draws.branch(attempt).part(left)
            free = draw.uniform(side, side) >= self.walls
            start = _one_of(draw, free)
            steps, paths = distances(free, start)
            fits = free & (paths == 1) & (steps >= least)
            goal = _one_of(draw, fits)
            done = fits.any(axis=(1, 2)) & start.any(axis=(1, 2))
            made = np.where(start, START, np.where(goal, GOAL, np.where(free, FREE, WALL)))
            mazes[left[done]] = made[done]
            left = left[~done]
            if not len(left):
                break
        require(self, "least_path", not len(left), "less: hardly a maze has such a path")
        return mazes.reshape(count, -1), labels_of(mazes).reshape(count, -1)

    def changed(
        self, draws: Draws, questions: np.ndarray, answers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mazes turned and mirrored, one for each of the draws."""
        return in_eight_ways(draws, questions, answers, side=self.side)


def in_eight_ways(
    draws: Draws, questions: np.ndarray, answers: np.ndarray, *, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mazes and answers, both (N, cells), turned or mirrored in a way that is drawn."""
    shape = (len(draws), side, side)
    ways = draws.integers(8)
    first, second = (
        turned(grid.reshape(shape), ways).reshape(len(draws), -1) for grid in (questions, answers)
    )
    return first, second


def _one_of(draws: Draws, cells: np.ndarray) -> np.ndarray:
    """Return (N, H, W) bool, True at one random cell of those that are; nowhere if none is."""
    count = len(cells)
    keys = np.where(cells, draws.uniform(*cells.shape[1:]), -1.0).reshape(count, -1)
    chosen = np.zeros(keys.shape, dtype=bool)
    chosen[np.arange(count), keys.argmax(axis=1)] = True
    return chosen.reshape(cells.shape) & cells
