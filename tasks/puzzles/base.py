"""Puzzles on a grid: a number of them is made, and train sees each in many equivalent forms.

Row i of train is puzzle i modulo ``puzzles``, changed as the draws of i say; so nothing is stored
but the puzzles, and a resumed run goes on with the same rows. Tests have other puzzles, unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.base.draws import Draws
from tasks.base.options import require
from tasks.base.positions import NO_LABEL, PositionRows, PositionTask, Rows


@dataclass(frozen=True, kw_only=True)
class PuzzleTask(PositionTask):
    """Base: a subclass makes puzzles, and says which changes leave them puzzles.

    Every cell has a label, those that are given too, as in the published scores.
    """

    puzzles: int = 1000
    """Puzzles of train, each seen in many forms."""
    augment: bool = True
    """Change the puzzles of train; false: train is a fixed set."""
    valid_puzzles: int = 200
    """Puzzles of valid, which may choose the weights."""
    test_puzzles: int = 500
    """Puzzles of test."""
    seed: int = 0
    """Seed of the puzzles and of their changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("puzzles", "valid_puzzles", "test_puzzles"):
            require(self, name, getattr(self, name) >= 1, "at least 1")

    selection_splits = ("valid",)
    in_distribution_split = "valid"

    def make(self, split: str, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return questions and answers of some puzzles of a split, both (N, cells)."""
        raise NotImplementedError

    def changed(
        self, draws: Draws, questions: np.ndarray, answers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the puzzles in another form, one for each of the draws."""
        raise NotImplementedError

    def made(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return questions and answers of all ``count`` puzzles of a split, made once."""
        known = self.__dict__.setdefault("_made", {})
        if split not in known:
            known[split] = self.make(split, np.arange(count))
        return known[split]

    def difficulty(self, question: np.ndarray) -> float:
        """Return how hard a question (cells,) is."""
        raise NotImplementedError

    def cells(self) -> int:
        """Return the cells of the grid."""
        raise NotImplementedError

    def build_splits(self) -> dict[str, PuzzleRows]:
        """Return train, valid and test; no puzzle is in two of them but by chance."""
        return {
            "train": PuzzleRows(self, "train", self.puzzles),
            "valid": PuzzleRows(self, "valid", self.valid_puzzles),
            "test": PuzzleRows(self, "test", self.test_puzzles),
        }

    def split_names(self) -> list[str]:
        """Return the names of the splits, train first."""
        return ["train", "valid", "test"]

    def max_source_length(self) -> int:
        """Return the cells."""
        return self.cells()

    def max_target_length(self) -> int:
        """Return the cells."""
        return self.cells()

    def data_hash(self) -> str:
        """Return the SHA-256 over the first rows of train and all rows of the others."""
        if "_data_hash" not in self.__dict__:
            digest = hashlib.sha256(json.dumps([self.symbols(), self.labels()]).encode())
            for name in self.split_names():
                rows = self.splits()[name]
                assert isinstance(rows, PuzzleRows)
                made = rows.arrays(np.arange(min(rows.puzzles, 1000)))
                digest.update(f"{name} {rows.puzzles}".encode())
                digest.update(made.source.astype("<i4").tobytes())
                digest.update(made.target.astype("<i4").tobytes())
            object.__setattr__(self, "_data_hash", digest.hexdigest())
        return self.__dict__["_data_hash"]


class PuzzleRows(PositionRows):
    """Rows of a split of puzzles; those of train have no end where they are changed."""

    task: PuzzleTask

    def __init__(self, task: PuzzleTask, split: str, puzzles: int) -> None:
        self.split, self.puzzles = split, puzzles
        self.is_endless = split == "train" and task.augment  # type: ignore[misc]
        super().__init__(task, 2**62 if self.is_endless else puzzles)

    def arrays(self, rows: np.ndarray) -> Rows:
        """Return some rows as numbers."""
        questions, answers = self.task.made(self.split, self.puzzles)
        questions, answers = questions[rows % self.puzzles], answers[rows % self.puzzles]
        if self.is_endless:
            draws = Draws(f"{self.task.name} {self.task.seed} changes", rows)
            questions, answers = self.task.changed(draws, questions, answers)
        return Rows(questions, np.where(answers < 0, NO_LABEL, answers))

    def about(self, rows: np.ndarray) -> Sequence[tuple[str, float]]:  # type: ignore[override]
        """Return category and difficulty of some rows (B,)."""
        questions, _ = self.task.made(self.split, self.puzzles)
        numbers = rows % self.puzzles
        return [("", self.task.difficulty(question)) for question in questions[numbers]]
