"""The official sets of puzzles: Sudoku-Extreme and Maze-Hard (Wang et al. 2025, arXiv 2506.21734).

Both come as ``train.csv`` and ``test.csv`` with a question, its answer and a rating on each line.
Train takes some puzzles of the one file and changes them as published; valid has others of it, and
test those of the other file, unchanged. The seed says which ones; those of test are evenly spread:

>>> spread(10, 4)
[0, 2, 5, 7]

Revisions and checksums are those that others who read the same files pin (rekursiv-ai/priml, and a
build script that has the same two of Sudoku-Extreme); they were not compared with the files here.
"""

from __future__ import annotations

import csv
import functools
import gzip
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, checked_path, locate
from tasks.base.draws import Draws
from tasks.base.options import require
from tasks.puzzles.base import PuzzleRows, PuzzleTask
from tasks.puzzles.maze import CELLS, in_eight_ways
from tasks.puzzles.sudoku import BOXES, in_other_forms

HUB = "https://huggingface.co/datasets/sapientinc"
Pairs = tuple[np.ndarray, np.ndarray]


def _file(folder: str, name: str, revision: str, sha256: str) -> DataFile:
    hub = folder.replace("_", "-").replace("maze-hard", "maze-30x30-hard-1k")
    return DataFile(f"{folder}/{name}", f"{HUB}/{hub}/resolve/{revision}/{name}", sha256)


DATA_FILES: dict[str, DataFile] = {
    file.path: file
    for file in (
        _file(
            "sudoku_extreme",
            "train.csv",
            "58942f96baeb572ca3127e2a9e9c70f330783d6b",
            "64b46674db0148e0d73a16346dadeb2b1c00824d3fca3f85b2ae7037f6b4b38e",
        ),
        _file(
            "sudoku_extreme",
            "test.csv",
            "58942f96baeb572ca3127e2a9e9c70f330783d6b",
            "a2fd52aea23d331d5b4ee723c856236e838a9fb9a70e66f4e0e0cf26c338c6a8",
        ),
        _file(
            "maze_hard",
            "train.csv",
            "549754de3d67eebe57b6b22c7d226b9412d55b07",
            "25f9e39b5aee16967da41ba63b2d1d75cf608c2360d8a1419d827f9859dbafa0",
        ),
        _file(
            "maze_hard",
            "test.csv",
            "549754de3d67eebe57b6b22c7d226b9412d55b07",
            "5120d52088fb3f8036e62e90103808a79ba58847d8601f9451f40991b0903a62",
        ),
    )
}
"""Official files by path."""
COLLECTIONS = {
    folder: tuple(file for file in DATA_FILES.values() if file.collection == folder)
    for folder in ("sudoku_extreme", "maze_hard")
}
"""The same by what ``tasks.fetch`` calls them."""


def spread(available: int, wanted: int) -> list[int]:
    """Return the numbers of ``wanted`` lines, evenly spread over those of a file."""
    return [number * available // wanted for number in range(wanted)]


def read_puzzles(
    file: DataFile, cells: int, choose: Callable[[int], Sequence[int]]
) -> list[tuple[str, str]]:
    """Return question and answer of some lines of an official file, in the order of the choice.

    The largest file has four million lines, of which no more than those lie in memory.

    Args:
        file: which one.
        cells: of a grid.
        choose: gives the numbers of lines, from 0 without the header, from how many there are.

    Raises:
        DataMissing: it is not there.
        DataDamaged: it is not the published one, or a line of it has other fields.
    """
    path = checked_path(file)
    with _opened(path) as stream:
        count = sum(1 for _ in stream) - 1
    chosen = list(choose(count))
    found: dict[int, tuple[str, str]] = {}
    wanted = set(chosen)
    with _opened(path) as stream:
        next(stream)  # names of the columns
        for number, line in enumerate(stream):
            if number in wanted:
                found[number] = _pair(line, f"{path}:{number + 2}", cells)
    return [found[number] for number in chosen]


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return open(path, encoding="utf-8", newline="\n")


def _pair(line: str, where: str, cells: int) -> tuple[str, str]:
    (fields,) = csv.reader([line])
    if len(fields) != 4 or not len(fields[1]) == len(fields[2]) == cells:
        expected = f"source, question, answer and rating, of {cells} cells"
        raise DataDamaged(f"{where}: expected {expected}")
    return fields[1], fields[2]


class OfficialPuzzles(PuzzleTask):
    """Base: a subclass says which files it reads, and what their characters are."""

    folder: ClassVar[str]
    """Of the files, and the collection that ``tasks.fetch`` knows them by."""
    characters: ClassVar[str]
    """Characters of the files in the order of ``symbols``, and further ones of answers."""
    offset: ClassVar[int] = 0
    """Number of the first character that an answer can have."""

    def build_splits(self) -> dict[str, PuzzleRows]:
        """Return train, valid and test.

        Raises:
            DataMissing: a file is not there.
        """
        for name in ("train", "test"):
            locate(DATA_FILES[f"{self.folder}/{name}.csv"])
        return super().build_splits()

    def make(self, split: str, numbers: np.ndarray) -> Pairs:
        """Return questions and answers of some puzzles of a split, both (N, cells).

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
            OptionError: a file has not so many puzzles.
        """
        name = "test" if split == "test" else "train"
        choose = functools.partial(self._choose, split)
        pairs = read_puzzles(DATA_FILES[f"{self.folder}/{name}.csv"], self.cells(), choose)
        questions, answers = zip(*pairs, strict=True)
        labels = self.numbered(answers) - self.offset
        if (labels < 0).any():
            raise DataDamaged(f"{self.folder}: an answer with a blank")
        return self.numbered(questions), labels

    def _choose(self, split: str, available: int) -> list[int]:
        """Return the lines that a split has of its file."""
        if split == "test":
            fits = self.test_puzzles <= available
            require(self, "test_puzzles", fits, f"at most {available}")
            return spread(available, self.test_puzzles)
        both = self.puzzles + self.valid_puzzles
        require(self, "puzzles", both <= available, f"at most {available}, valid_puzzles included")
        drawn = random.Random(f"{self.name} {self.seed}").sample(range(available), both)
        return drawn[: self.puzzles] if split == "train" else drawn[self.puzzles :]

    def numbered(self, grids: tuple[str, ...]) -> np.ndarray:
        """Return grids as numbers of their characters, (N, cells).

        Raises:
            DataDamaged: another character.
        """
        table = np.full(128, -1, dtype=np.int64)
        table[[ord(character) for character in self.characters]] = np.arange(len(self.characters))
        codes = np.frombuffer("".join(grids).encode("ascii", "replace"), dtype=np.uint8)
        found = table[np.minimum(codes, 127)].reshape(len(grids), -1)
        if (found < 0).any():
            raise DataDamaged(f"{self.folder}: a cell that is none of {self.characters!r}")
        return found


@dataclass(frozen=True, kw_only=True)
class SudokuExtreme(OfficialPuzzles):
    """Sudoku-Extreme: hard puzzles of 9 digits, from the official files."""

    name: ClassVar[str] = "sudoku_extreme"
    difficulty_name: ClassVar[str] = "blanks"
    about: ClassVar[About] = About(
        family="puzzles",
        hard="search with many steps back: few puzzles of train, very hard ones in test",
        source="arXiv 2506.21734; sapientinc/sudoku-extreme 58942f96",
        published=(
            "whole grids: TRM 87.4 % (74.7 with attention), HRM 55.0 %, a Transformer without "
            "recursion 0, trained on 1,000 puzzles with 1,000 forms each, on all 423 thousand of "
            "test (second-hand)",
        ),
        fetch="python -m tasks.fetch sudoku_extreme",
    )
    folder: ClassVar[str] = "sudoku_extreme"
    characters: ClassVar[str] = ".123456789"
    offset: ClassVar[int] = 1

    test_puzzles: int = 1000
    """Puzzles of test, evenly spread over the 423 thousand of the official file."""

    def symbols(self) -> tuple[str, ...]:
        """Return the blank and the digits."""
        return tuple(self.characters)

    def labels(self) -> tuple[str, ...]:
        """Return the digits."""
        return tuple(self.characters[1:])

    def cells(self) -> int:
        """Return 81."""
        return 81

    def difficulty(self, question: np.ndarray) -> float:
        """Return the blanks of a question (81,)."""
        return float((question == 0).sum())

    def changed(self, draws: Draws, questions: np.ndarray, answers: np.ndarray) -> Pairs:
        """Return the puzzles in another form, one for each of the draws."""
        return in_other_forms(draws, questions, answers, size=9, boxes=BOXES[9])


@dataclass(frozen=True, kw_only=True)
class MazeHard(OfficialPuzzles):
    """Maze-Hard: long shortest paths in mazes of 30 × 30, from the official files."""

    name: ClassVar[str] = "maze_hard"
    difficulty_name: ClassVar[str] = "walls"
    about: ClassVar[About] = About(
        family="puzzles",
        hard="a path of over a hundred steps that is known at its ends alone",
        source="arXiv 2506.21734; sapientinc/maze-30x30-hard-1k 549754de",
        published=(
            "whole grids: TRM 85.3 %, HRM 74.5 %, a Transformer without recursion 0, on all 1,000 "
            "of test (second-hand)",
        ),
        fetch="python -m tasks.fetch maze_hard",
    )
    folder: ClassVar[str] = "maze_hard"
    characters: ClassVar[str] = "# SGo"

    puzzles: int = 900
    """Mazes of train, each seen in eight forms; with those of valid at most 1,000."""
    valid_puzzles: int = 100
    """Mazes of valid, of the official train file; published are 1,000 for train and none here."""
    test_puzzles: int = 1000
    """Mazes of test, evenly spread over the 1,000 of the official file."""

    def symbols(self) -> tuple[str, ...]:
        """Return the cells."""
        return tuple(CELLS)

    def labels(self) -> tuple[str, ...]:
        """Return the cells, and the path."""
        return (*CELLS, "o")

    def cells(self) -> int:
        """Return 900."""
        return 900

    def difficulty(self, question: np.ndarray) -> float:
        """Return the walls of a question (900,), to the next ten."""
        return float(round((question == 0).sum(), -1))

    def changed(self, draws: Draws, questions: np.ndarray, answers: np.ndarray) -> Pairs:
        """Return the mazes turned and mirrored, one for each of the draws."""
        return in_eight_ways(draws, questions, answers, side=30)
