"""Random numbers of rows, each a function of seed, stream and the row's number alone.

Rows can be asked for in any order, in any company and on any machine: a row is the same whichever
batch, rank or resumed run it is made for, and nothing has to be stored.

>>> draws = Draws("example", np.array([3, 7]))
>>> together = draws.integers(10, 5)
>>> alone = Draws("example", np.array([7])).integers(10, 5)
>>> (together[1] == alone[0]).all()
np.True_
"""

from __future__ import annotations

import hashlib

import numpy as np

# Constants of the SplitMix64 generator (Steele, Lea and Flood 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ROW = np.uint64(0xD1342543DE82EF95)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return well mixed 64-bit numbers; overwrites ``numbers``, uint64."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= _FIRST
    numbers ^= numbers >> np.uint64(27)
    numbers *= _SECOND
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _key(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


class Draws:
    """Numbers for N rows: each call returns arrays of N, drawn on from where the last one ended.

    The numbers of a row do not depend on the others. What is drawn a number of times that depends
    on other rows (draw again until all rows fit) needs a ``branch`` for each time.

    Args:
        stream: seed, split and whatever else parts these numbers from others.
        rows: (N,) numbers of the rows, from 0.
    """

    def __init__(self, stream: str, rows: np.ndarray) -> None:
        rows = np.asarray(rows, dtype=np.uint64)
        self._keys = _mixed(_mixed(rows * _ROW + _key(stream)) + _STEP)
        self._used = 0

    def __len__(self) -> int:
        return len(self._keys)

    def branch(self, name: object) -> Draws:
        """Return draws for the same rows, apart from these and from those of another name."""
        other = object.__new__(Draws)
        other._keys = _mixed(self._keys + _key(f"branch {name}"))
        other._used = 0
        return other

    def part(self, chosen: np.ndarray) -> Draws:
        """Return draws for some of the rows, going on from here; ``chosen`` indexes (N,)."""
        other = object.__new__(Draws)
        other._keys = self._keys[chosen]
        other._used = self._used
        return other

    def bits(self, *shape: int) -> np.ndarray:
        """Return uint64 (N, *shape)."""
        count = int(np.prod(shape, dtype=np.int64))
        counters = np.arange(self._used + 1, self._used + 1 + count, dtype=np.uint64) * _STEP
        self._used += count
        return _mixed(self._keys[:, None] + counters).reshape(len(self), *shape)

    def integers(self, high: int | np.ndarray, *shape: int) -> np.ndarray:
        """Return int64 (N, *shape), each from 0 to ``high`` − 1; ``high`` at most 2³¹.

        Args:
            high: one bound, or an array that broadcasts to the result.
            shape: of a row's numbers; none for one number a row.
        """
        top = self.bits(*shape) >> np.uint64(32)
        return ((top * np.asarray(high, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)

    def uniform(self, *shape: int) -> np.ndarray:
        """Return float64 (N, *shape) from 0 to below 1."""
        return (self.bits(*shape) >> np.uint64(11)) * 2.0**-53

    def permutations(self, size: int, count: int | None = None) -> np.ndarray:
        """Return (N, count) distinct numbers below ``size`` in random order; by default all.

        Equal keys of 64 bits, which would favour the lower number, do not occur in practice.
        """
        order = np.argsort(self.bits(size), axis=1)
        return order if count is None else order[:, :count]

    def distinct(self, high: int, count: int) -> np.ndarray:
        """Return int64 (N, count), each row of distinct numbers from 0 to ``high`` − 1.

        What a row has twice is drawn again, all but the first, until nothing is: no row of
        distinct numbers is likelier than another.

        Raises:
            ValueError: there are not so many numbers.
        """
        if count > high:
            raise ValueError(f"{count} distinct numbers below {high}")
        if 4 * count > high:
            return self.permutations(high, count)
        numbers = self.integers(high, count)
        rows, again = np.arange(len(self)), 0
        while len(rows):
            order = np.argsort(numbers[rows], axis=1, kind="stable")
            ordered = np.take_along_axis(numbers[rows], order, axis=1)
            repeated = np.zeros_like(ordered, dtype=bool)
            np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
            some = repeated.any(axis=1)
            rows, repeated = rows[some], repeated[some]
            again += 1
            fresh = self.branch(f"again {again}").part(rows).integers(high, count)
            numbers[rows] = np.where(repeated, fresh, numbers[rows])
        return numbers
