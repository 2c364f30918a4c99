"""Length generalisation as a protocol: train on some lengths, test on a grid of others.

A task of this base says how rows of one length are drawn; this file decides which row has which
length, in which split. Row i of a split is a function of the task's seed and i, so that resumed and
distributed runs see the same rows and none are stored. Train is endless by default: every step has
fresh rows. With ``train_rows`` it is a fixed set that is visited again and again.

``iid`` has rows like those of train. It may share short rows with it, which ``tasks.show`` counts;
the lengths of ``valid_longer`` and ``longer`` are refused where train has them too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.draws import Draws
from tasks.base.generated import check_range
from tasks.base.options import require
from tasks.base.positions import NO_LABEL, STRETCH, PositionRows, PositionTask, Rows

HASHED_ROWS = 1000
"""Rows of train that its hash is of; the others follow from the same seed by the same code."""

NUMBERS = 2**16
"""Rows times length that are drawn together, so that their arrays stay in a processor's cache."""

ENDLESS = 2**62
"""Rows of a train split that never ends."""


@dataclass(frozen=True, kw_only=True)
class LengthTask(PositionTask):
    """Base of the tasks that generate rows of any length; a subclass gives ``draw``."""

    difficulty_name: ClassVar[str] = "length"
    shortest: ClassVar[int] = 1
    """Least length that the task can have."""

    train_lengths: tuple[int, int] = (1, 40)
    """Shortest and longest row of train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [50, 75, 100])
    """Lengths of longer."""
    valid_lengths: list[int] = field(default_factory=list)
    """Lengths of valid_longer, which may choose the weights; empty: no such split."""
    train_rows: int | None = None
    """Rows of train; null: endless, each is seen once."""
    rows_per_length: int = 1
    """Rows in a row of train that have a length in common: a batch's, where batches are to have
    one length each."""
    curriculum_start: int | None = None
    """Longest row at the beginning; null: train_lengths' longest, so no curriculum."""
    curriculum_rows: int = 32_000
    """Rows of train after which the longest row grows by one, up to that of train_lengths."""
    iid_rows: int = 1000
    """Rows of iid, equally many of each length."""
    rows_per_test_length: int = 200
    """Rows of longer and valid_longer for each length."""
    seed: int = 0
    """Seed of the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "train_lengths", minimum=self.shortest)
        first, last = self.train_lengths
        for name in ("test_lengths", "valid_lengths"):
            fits = all(length >= self.shortest for length in getattr(self, name))
            require(self, name, fits, f"at least {self.shortest} each")
        require(self, "test_lengths", bool(self.test_lengths), "one length or more")
        trained = range(first, last + 1)
        both = [n for n in (*self.test_lengths, *self.valid_lengths) if n in trained]
        longer = not both or self.allows_trained_lengths
        name = "valid_lengths" if set(both) & set(self.valid_lengths) else "test_lengths"
        require(self, name, longer, f"outside task.train_lengths={list(self.train_lengths)}")
        apart = not set(self.valid_lengths) & set(self.test_lengths)
        require(self, "valid_lengths", apart, "other lengths than task.test_lengths")
        for name in ("rows_per_length", "curriculum_rows", "iid_rows", "rows_per_test_length"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "train_rows", self.train_rows is None or self.train_rows >= 1, "at least 1")
        start = self.curriculum_start
        inside = start is None or start in trained
        require(self, "curriculum_start", inside, f"from {first} to {last}, or null")

    @property
    def allows_trained_lengths(self) -> bool:
        """Whether a test may have a length of train: where all have one length, for instance."""
        return False

    @property
    def selection_splits(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return valid_longer, where there is one."""
        return ("valid_longer",) if self.valid_lengths else ()

    @property
    def in_distribution_split(self) -> str | None:
        """Return iid."""
        return "iid"

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return one row for each of the draws, all of one length."""
        raise NotImplementedError

    def loops(self, lengths: np.ndarray) -> np.ndarray:
        """Return how many repeats rows of some lengths (B,) have where that follows the length."""
        return lengths

    def variants(self) -> Sequence[str]:
        """Return the kinds of rows that longer has of each length: their categories."""
        return ("",)

    def draw_variant(self, draws: Draws, length: int, variant: str) -> Rows:
        """Return one row of a kind for each of the draws; the kind "" is that of train."""
        return self.draw(draws, length)

    def build_splits(self) -> dict[str, Sequence]:
        """Return train, valid_longer (if it has lengths), iid and longer."""
        first, last = self.train_lengths
        count = ENDLESS if self.train_rows is None else self.train_rows
        splits: dict[str, Sequence] = {"train": TrainRows(self, count)}
        if self.valid_lengths:
            splits["valid_longer"] = self._grid("valid_longer", self.valid_lengths)
        iid = GridRows(self, "iid", list(range(first, last + 1)), self.iid_rows)
        longer = self._grid("longer", self.test_lengths, self.variants())
        return splits | {"iid": iid, "longer": longer}

    def _grid(self, split: str, lengths: list[int], variants: Sequence[str] = ("",)) -> GridRows:
        count = self.rows_per_test_length * len(lengths) * len(variants)
        return GridRows(self, split, lengths, count, variants)

    def split_names(self) -> list[str]:
        """Return the names of the splits, train first."""
        return list(self.splits())

    def max_source_length(self) -> int:
        """Return the longest source over all splits, in tokens."""
        longest = max(self.train_lengths[1], *self.test_lengths, *self.valid_lengths, 0)
        return self.source_length(longest)

    def max_target_length(self) -> int:
        """Return the longest source, since targets are aligned with it."""
        return self.max_source_length()

    def source_length(self, length: int) -> int:
        """Return the most tokens of a row of a length."""
        made = self.draw(Draws(f"{self.name} longest", np.arange(64)), length)
        return made.source.shape[1]

    def data_hash(self) -> str:
        """Return the SHA-256 over the first rows of train and all rows of the others."""
        if "_data_hash" not in self.__dict__:
            digest = hashlib.sha256(json.dumps([self.symbols(), self.labels()]).encode())
            for name, rows in self.splits().items():
                assert isinstance(rows, PositionRows)
                count = len(rows) if name != self.train_split else min(len(rows), HASHED_ROWS)
                made = rows.arrays(np.arange(count))
                digest.update(f"{name} {len(rows)} {made.source.shape}".encode())
                digest.update(made.source.astype("<i4").tobytes())
                digest.update(made.target.astype("<i4").tobytes())
            object.__setattr__(self, "_data_hash", digest.hexdigest())
        return self.__dict__["_data_hash"]


class GeneratedRows(PositionRows):
    """Rows of a ``LengthTask``, each drawn for the length that ``lengths`` gives it."""

    task: LengthTask
    stream: str

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the length of each of some rows, (B,)."""
        raise NotImplementedError

    def arrays(self, rows: np.ndarray) -> Rows:
        """Return some rows as numbers."""
        return self._arrays(rows)

    def _arrays(self, rows: np.ndarray, variant: str = "") -> Rows:
        """Return some rows of a kind; those of one length are drawn together."""
        lengths = self.lengths(rows)
        places, parts = [], []
        for length in np.unique(lengths).tolist():
            of_length = np.flatnonzero(lengths == length)
            blocks = 1 + len(of_length) * length // NUMBERS
            for place in np.array_split(of_length, blocks):
                draws = Draws(f"{self.task.name} {self.task.seed} {self.stream}", rows[place])
                places.append(place)
                parts.append(self.task.draw_variant(draws, length, variant))
        return _joined(places, parts, len(rows))

    def loops(self, rows: np.ndarray) -> np.ndarray:
        """Return the repeats (B,) of some rows where those follow a row's length."""
        return np.maximum(1, self.task.loops(self.lengths(rows)))

    def about(self, rows: np.ndarray) -> list[tuple[str, float]]:
        """Return category and length of some rows (B,)."""
        return [("", float(length)) for length in self.lengths(rows).tolist()]


class TrainRows(GeneratedRows):
    """The rows of train, endless or a fixed set, with its curriculum."""

    stream = "train"

    @property
    def is_endless(self) -> bool:  # type: ignore[override]
        """Whether rows are never seen twice."""
        return self.task.train_rows is None

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the length of each of some rows, (B,)."""
        task = self.task
        first, last = task.train_lengths
        blocks = rows // task.rows_per_length
        longest = np.full(len(rows), last)
        if task.curriculum_start is not None:
            seen = (blocks * task.rows_per_length) % STRETCH
            longest = np.minimum(last, task.curriculum_start + seen // task.curriculum_rows)
        draws = Draws(f"{task.name} {task.seed} lengths", blocks)
        return first + draws.integers(longest - first + 1)


class GridRows(GeneratedRows):
    """Rows of a few lengths and kinds, in turn."""

    def __init__(
        self,
        task: LengthTask,
        stream: str,
        grid: list[int],
        count: int,
        variants: Sequence[str] = ("",),
    ) -> None:
        super().__init__(task, count)
        self.stream, self.variants = stream, variants
        self._grid = np.array(grid)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the length of each of some rows, (B,)."""
        return self._grid[rows % len(self._grid)]

    def _variants(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of the kind of each of some rows, (B,)."""
        return rows // len(self._grid) % len(self.variants)

    def arrays(self, rows: np.ndarray) -> Rows:
        """Return some rows as numbers."""
        kinds = self._variants(rows)
        places = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
        parts = [
            self._arrays(rows[place], variant=self.variants[kinds[place[0]]]) for place in places
        ]
        return _joined(places, parts, len(rows))

    def about(self, rows: np.ndarray) -> list[tuple[str, float]]:
        """Return category and length of some rows (B,)."""
        pairs = zip(self._variants(rows).tolist(), self.lengths(rows).tolist(), strict=True)
        return [(self.variants[kind], float(length)) for kind, length in pairs]


def _joined(places: Sequence[np.ndarray], parts: Sequence[Rows], count: int) -> Rows:
    """Return rows that were made in parts, each part at its places among them."""
    width = max(part.source.shape[1] for part in parts)
    source = np.full((count, width), NO_LABEL, dtype=np.int64)
    target = source.copy()
    for place, part in zip(places, parts, strict=True):
        source[place, : part.source.shape[1]] = part.source
        target[place, : part.target.shape[1]] = part.target
    return Rows(source, target)
