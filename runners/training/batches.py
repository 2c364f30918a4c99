"""Rows of a split as batches, and the order in which training visits them.

Rows of tasks with examples are encoded once, as padded arrays; those of a language task are windows
cut from memory-mapped tokens. Either way a step costs one fancy index per array and no loop over
tokens. The order is a pure function of (seed, epoch, index): a resumed run needs nothing but its
step.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

Made = TypeVar("Made")

IGNORE = -100
"""Target id that the loss leaves out."""

TARGETS = "targets"
"""Name of the array that holds what is predicted; every other sequence is read by the model."""

BATCHES_PER_POOL = 32
"""Batches whose rows are sorted by length together; more would save little padding."""


@dataclass(frozen=True)
class Batch:
    """Rows of a split on the device."""

    tensors: Mapping[str, torch.Tensor]
    """What the model reads and predicts, by the names that the task's objective knows."""
    rows: np.ndarray
    """Which rows of the split these are."""
    num_targets: int
    """Predictions that the loss counts."""
    num_tokens: int
    """Real tokens of all sequences that the model reads."""


class Order(abc.ABC):
    """Which rows the batch of a step holds, a pure function of the step."""

    @abc.abstractmethod
    def rows(self, step: int) -> np.ndarray:
        """Return the row numbers (B,) of the batch of a step.

        Args:
            step: counted from 0; asked for in any order.
        """


class Columns(abc.ABC):
    """The rows of a split, ready to be made into batches."""

    in_memory = False
    """Whether rows lie there encoded: a batch then takes less time than handing it to a thread."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @property
    @abc.abstractmethod
    def shape(self) -> np.ndarray:
        """Return (N, number of sequences): lengths of what the model reads of each row."""

    @abc.abstractmethod
    def batch(self, rows: np.ndarray, *, device: torch.device) -> Batch:
        """Return a batch of some rows.

        Args:
            rows: (B,) row numbers, in any order.
            device: where the tensors go.
        """

    def longest(self, rows: np.ndarray) -> int:
        """Return the most tokens that the model reads of one of some rows (B,)."""
        return int(self.shape[rows].max())

    def loops(self, rows: np.ndarray) -> np.ndarray:
        """Return how many repeats each of some rows (B,) is to have where that follows its length.

        Raises:
            NotImplementedError: the rows have no length of their own.
        """
        raise NotImplementedError("rows of no length")

    def order(self, *, batch_size: int, tokens_per_batch: int | None, seed: int) -> Order:
        """Return which rows the batch of a step holds, as ``BatchOrder`` takes its arguments."""
        return BatchOrder(
            self.shape, batch_size=batch_size, tokens_per_batch=tokens_per_batch, seed=seed
        )


@dataclass(frozen=True)
class PaddedColumns(Columns):
    """Named arrays over the N rows of a split.

    ``arrays[name]`` is (N, longest) for sequences and (N,) for one number a row. ``lengths[name]``,
    (N,), exists for sequences alone; past a row's length is padding.
    """

    in_memory = True

    arrays: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def shape(self) -> np.ndarray:
        """Return (N, number of sequences): lengths of what the model reads of each row."""
        read = [lengths for name, lengths in self.lengths.items() if name != TARGETS]
        return np.stack(read, axis=1)

    def batch(self, rows: np.ndarray, *, device: torch.device) -> Batch:
        """Return the arrays of ``rows`` (B,), cut to the longest of them: (B, T) int64 each.

        Each sequence that the model reads also gets ``<name>_mask``, (B, T) bool, True at real
        positions.
        """
        tensors: dict[str, torch.Tensor] = {}
        num_tokens = 0
        num_targets = len(rows)
        for name, array in self.arrays.items():
            if name in self.lengths:
                lengths = self.lengths[name][rows]
                longest = int(lengths.max())
                values = array[rows, :longest]
                if name == TARGETS:
                    num_targets = int((values != IGNORE).sum())
                else:
                    num_tokens += int(lengths.sum())
                    tensors[f"{name}_mask"] = to_device(_mask(lengths, longest), device)
            else:
                values = array[rows]
            tensors[name] = to_device(values.astype(np.int64), device)
        return Batch(tensors=tensors, rows=rows, num_targets=num_targets, num_tokens=num_tokens)


class Windows(Protocol):
    """What windows are cut from; ``tasks.language.windows.TokenSplit`` is one."""

    context_length: int

    def __len__(self) -> int: ...

    def windows(self, rows: np.ndarray) -> np.ndarray:
        """Return (N, context_length + 1) int64: each window and the token after it."""

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """Return (N, context_length) int32: number of each token's document in its window."""


@dataclass(frozen=True)
class WindowColumns(Columns):
    """Windows of C tokens over one stream, read from it batch by batch."""

    split: Windows
    separate_documents: bool = False
    """Whether a batch also says which document of its window each token is of."""

    def __len__(self) -> int:
        return len(self.split)

    @property
    def shape(self) -> np.ndarray:
        """Return (N, 1), the window's length in every row; takes no memory."""
        return np.broadcast_to(np.int64(self.split.context_length), (len(self), 1))

    def batch(self, rows: np.ndarray, *, device: torch.device) -> Batch:
        """Return ``tokens`` (B, C) and ``targets`` (B, C), which are the tokens one place later.

        With ``separate_documents`` also ``documents`` (B, C): the number of each token's document.
        """
        windows = to_device(self.split.windows(rows), device)
        tensors = {"tokens": windows[:, :-1].contiguous(), TARGETS: windows[:, 1:].contiguous()}
        if self.separate_documents:
            tensors["documents"] = to_device(self.split.documents(rows), device)
        count = tensors[TARGETS].numel()
        return Batch(tensors=tensors, rows=rows, num_targets=count, num_tokens=count)


def pad(sequences: Sequence[Sequence[int]], value: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences as one array (N, longest), padded with ``value``, and their lengths (N,)."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    longest = int(lengths.max(initial=1))
    array = np.full((len(sequences), longest), value, dtype=np.int32)
    array[_mask(lengths, longest)] = [number for sequence in sequences for number in sequence]
    return array, lengths


def padded_batch(
    sequences: Sequence[Sequence[int]], value: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences as tokens (B, T) int64, padded on the right, and their mask (B, T) bool.

    The mask is True at real tokens.
    """
    array, lengths = pad(sequences, value)
    mask = _mask(lengths, array.shape[1])
    return to_device(array.astype(np.int64), device), to_device(mask, device)


def _mask(lengths: np.ndarray, longest: int) -> np.ndarray:
    """Return (N, longest) bool, True at the first ``lengths`` (N,) places of each row."""
    return np.arange(longest) < lengths[:, None]


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on a device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # A copy overlaps with computation only if it starts from page-locked memory.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class BatchOrder(Order):
    """Which rows the batch of a step holds.

    Epochs, each a permutation drawn from (seed, epoch), follow one another in an endless stream.
    The stream is cut into pools; a pool's rows are sorted by length and cut into batches, whose
    order is drawn from (seed, pool). Every batch has exactly ``batch_size`` rows or, with
    ``tokens_per_batch``, as many as fit when padded; every row comes once per epoch.

    Args:
        shape: (N, number of sequences), lengths of each row.
        batch_size: rows of a batch.
        tokens_per_batch: upper bound on the padded tokens of a batch; replaces ``batch_size``. A
            row that is longer alone makes a batch of its own.
        seed: decides the order, with the epoch and the pool.

    Raises:
        ValueError: there is no row.
    """

    def __init__(
        self,
        shape: np.ndarray,
        *,
        batch_size: int,
        tokens_per_batch: int | None = None,
        seed: int,
    ) -> None:
        self._shape = shape
        self._total = shape.sum(axis=1)
        self._budget = tokens_per_batch
        self._seed = seed
        if not len(shape):
            raise ValueError("train split: has no rows")
        if tokens_per_batch is not None:
            batch_size = max(1, int(tokens_per_batch / self._total.mean()))
        # A pool longer than an epoch would sort two copies of a row into one batch.
        self._pool_rows = batch_size * min(BATCHES_PER_POOL, max(1, len(shape) // batch_size))
        self._batch_size = batch_size
        self._permutations: dict[int, np.ndarray] = {}
        self._pool: tuple[int, list[np.ndarray]] = (-1, [])
        self._starts = [0]  # first step of each pool known so far

    def rows(self, step: int) -> np.ndarray:
        """Return the row numbers (B,) of the batch of a step, shortest rows first.

        Args:
            step: counted from 0; asked for in any order.
        """
        if self._budget is None:
            pool, index = divmod(step, self._pool_rows // self._batch_size)
            return self._batches(pool)[index]
        while self._starts[-1] <= step:
            pool = len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._batches(pool)))
        pool = int(np.searchsorted(self._starts, step, side="right")) - 1
        return self._batches(pool)[step - self._starts[pool]]

    def _batches(self, pool: int) -> list[np.ndarray]:
        if self._pool[0] != pool:
            self._pool = (pool, self._cut(pool))
        return self._pool[1]

    def _cut(self, pool: int) -> list[np.ndarray]:
        positions = np.arange(pool * self._pool_rows, (pool + 1) * self._pool_rows)
        epochs, indices = np.divmod(positions, len(self._shape))
        rows = np.concatenate(
            [self._permutation(int(epoch))[indices[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        rows = rows[np.argsort(self._total[rows], kind="stable")]
        if self._budget is None:
            batches = list(rows.reshape(-1, self._batch_size))
        else:
            batches = self._fill(rows, self._budget)
        generator = np.random.default_rng([self._seed, 1, pool])
        return [batches[index] for index in generator.permutation(len(batches))]

    def _fill(self, rows: np.ndarray, budget: int) -> list[np.ndarray]:
        batches, first = [], 0
        # Sequences are padded apart, so a batch costs rows · (longest source + longest target).
        longest = np.zeros(self._shape.shape[1], dtype=np.int64)
        for index, row in enumerate(rows):
            grown = np.maximum(longest, self._shape[row])
            if index > first and int(grown.sum()) * (index - first + 1) > budget:
                batches.append(rows[first:index])
                first, grown = index, self._shape[row]
            longest = grown
        return [*batches, rows[first:]]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations = {
                known: order for known, order in self._permutations.items() if known >= epoch - 1
            }
            generator = np.random.default_rng([self._seed, 0, epoch])
            self._permutations[epoch] = generator.permutation(len(self._shape))
        return self._permutations[epoch]


# --- made ahead -------------------------------------------------------------------------


class Prefetch(Generic[Made]):
    """Calls ``make(step)`` in a thread, one step before it is asked for.

    What is made is a function of the step's number, so the thread has no state to save, and does
    not change the result of a run. There is never more than one call at a time. An error in
    ``make`` is raised by ``get``.
    """

    def __init__(self, make: Callable[[int], Made], *, num_steps: int) -> None:
        self._make = make
        self._num_steps = num_steps
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Made]] | None = None

    def get(self, step: int) -> Made:
        """Return ``make(step)``."""
        future = None
        if self._ahead is not None and self._ahead[0] == step:
            future = self._ahead[1]
        if future is None:
            future = self._thread.submit(self._make, step)
        made = future.result()
        self._ahead = None
        if step + 1 < self._num_steps:
            self._ahead = step + 1, self._thread.submit(self._make, step + 1)
        return made
