"""Edit distance of two strings: what turns the one into the other at the least cost?

Inserting and deleting a letter cost 2, replacing it 3:

>>> int(distances(*letters("mjk"), *letters("mjme"))[0])
5
>>> row = EditDistance.row("mjk", "mjme")
>>> print(*row.source, "->", *row.target[-3:])
m j k | m j m e = _ _ _ -> 0 0 5

The cost is read at three ``_``, as three digits. Of 26 letters 3 to 10 occur in a row. In two rows
of five the strings have nothing to do with each other; in the others the second one is edited at as
many random places as a number from 1 to its length, letters deleted, replaced and inserted equally
often while the lengths differ by 3 at most. The published code draws again where they differ by
more; here the edit is left out.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.positions import NO_LABEL, Rows, tokens_of
from tasks.base.task import Example

CHANGE_LENGTH, REPLACE = 2, 3
SPREAD = 3
"""Most letters by which the lengths differ."""
DIGITS = 3
BAR, EQUALS, SLOT = 26, 27, 28


def letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a string as numbers of letters (1, T), and its length (1,)."""
    return np.array([[ord(letter) - ord("a") for letter in text]]), np.array([len(text)])


def distances(
    first: np.ndarray, first_size: np.ndarray, second: np.ndarray, second_size: np.ndarray
) -> np.ndarray:
    """Return the costs (N,) between strings.

    Args:
        first: (N, S) numbers of letters, of which the first ``first_size`` (N,) count.
        first_size: see there.
        second: (N, T), of which the first ``second_size`` count.
        second_size: see there.
    """
    count, width = second.shape
    rows, places = np.arange(count), np.arange(width + 1)
    costs = np.broadcast_to(CHANGE_LENGTH * places, (count, width + 1))
    result = costs[rows, second_size]
    for place in range(first.shape[1]):
        differs = first[:, place, None] != second
        further = costs + CHANGE_LENGTH
        further[:, 1:] = np.minimum(further[:, 1:], costs[:, :-1] + REPLACE * differs)
        # Insertions one after the other: the least of what stands to the left, and the way from it.
        costs = np.minimum.accumulate(further - CHANGE_LENGTH * places, axis=1)
        costs = costs + CHANGE_LENGTH * places
        result = np.where(first_size == place + 1, costs[rows, second_size], result)
    return result


@dataclass(frozen=True, kw_only=True)
class EditDistance(LengthTask):
    """The least cost between two strings, on longer strings than trained."""

    name: ClassVar[str] = "edit_distance"
    difficulty_name: ClassVar[str] = "letters of one string"
    shortest: ClassVar[int] = 4
    about: ClassVar[About] = About(
        family="length generalisation",
        hard="a table of length times length, filled along its diagonals",
        source="arXiv 2505.19245; kevin671/cot-vs-loop 783fa900",
        published=(
            "setting: strings of 16 to 32, a million rows, 2 layers looped 8 times (repository)",
        ),
    )

    train_lengths: tuple[int, int] = (4, 16)
    """Shortest and longest string of train and iid; the other one differs by 3 at most."""
    test_lengths: list[int] = field(default_factory=lambda: [18, 20, 24, 32])
    """Lengths of longer."""

    def symbols(self) -> tuple[str, ...]:
        """Return the letters, the two separators, and what digits are read at."""
        return (*string.ascii_lowercase, "|", "=", "_")

    def labels(self) -> tuple[str, ...]:
        """Return the digits."""
        return tuple(string.digits)

    def source_length(self, length: int) -> int:
        """Return the most tokens of a row."""
        return 2 * length + SPREAD + 2 + DIGITS

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return pairs of strings, one of them of ``length`` letters."""
        used = 3 + draws.integers(8)[:, None]
        known = draws.branch("letters").distinct(26, 10)
        text = np.take_along_axis(known, draws.integers(used, length), axis=1)
        other, size = self._edited(draws, text, known, used)
        alone = draws.uniform() < 0.4
        free = np.take_along_axis(known, draws.integers(used, length + SPREAD), axis=1)
        other = np.where(alone[:, None], free, other)
        size = np.where(alone, length - SPREAD + draws.integers(2 * SPREAD), size)
        size = np.maximum(size, 1)
        own = np.full(len(draws), length)
        text = np.pad(text, ((0, 0), (0, SPREAD)))
        swap = (size < length)[:, None]  # the shorter one comes first
        return _rows(
            np.where(swap, other, text),
            np.minimum(size, own),
            np.where(swap, text, other),
            np.maximum(size, own),
        )

    def _edited(
        self, draws: Draws, text: np.ndarray, known: np.ndarray, used: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return strings (N, T + SPREAD) after random edits, and their lengths (N,)."""
        count, length = text.shape
        edited = np.pad(text, ((0, 0), (0, SPREAD)))
        places, size = np.arange(length + SPREAD), np.full(count, length)
        edits = 1 + draws.integers(length)
        kinds, where = draws.integers(3, length), draws.uniform(length)
        fresh = np.take_along_axis(known, draws.integers(used, length), axis=1)
        for edit in range(length):
            kind, goes_on = kinds[:, edit], edit < edits
            deletes = goes_on & (kind == 0) & (size > max(2, length - SPREAD))
            replaces = goes_on & (kind == 1)
            inserts = goes_on & (kind == 2) & (size < length + SPREAD - 1)
            place = (where[:, edit] * (size + inserts)).astype(np.int64)
            moved = np.where(deletes[:, None] & (places >= place[:, None]), places + 1, places)
            moved = np.where(inserts[:, None] & (places > place[:, None]), places - 1, moved)
            edited = np.take_along_axis(edited, moved.clip(0, length + SPREAD - 1), axis=1)
            new = (replaces | inserts)[:, None] & (places == place[:, None])
            edited = np.where(new, fresh[:, edit, None], edited)
            size = size + inserts - deletes
        return edited, size

    @staticmethod
    def row(first: str, second: str) -> Example:
        """Return the row of two strings."""
        made = _rows(*letters(first), *letters(second))
        task = EditDistance()
        return Example(*tokens_of(task, made)[0], difficulty=float(len(second)))


def _rows(
    first: np.ndarray, first_size: np.ndarray, second: np.ndarray, second_size: np.ndarray
) -> Rows:
    """Return rows of two strings each; arguments are those of ``distances``."""
    count = len(first)
    cost = distances(first, first_size, second, second_size)
    width = int((first_size + second_size).max()) + 2 + DIGITS
    places = np.broadcast_to(np.arange(width), (count, width))
    bar, end = first_size[:, None], (first_size + second_size)[:, None] + 1
    inner = np.take_along_axis(second, (places - bar - 1).clip(0, second.shape[1] - 1), axis=1)
    outer = np.take_along_axis(first, places.clip(0, first.shape[1] - 1), axis=1)
    source = np.where(places < bar, outer, np.where(places < end, inner, SLOT))
    source = np.where(places == bar, BAR, np.where(places == end, EQUALS, source))
    source = np.where(places > end + DIGITS, NO_LABEL, source)
    powers = 10 ** (DIGITS - (places - end)).clip(0, DIGITS)
    is_digit = (places > end) & (places <= end + DIGITS)
    return Rows(source, np.where(is_digit, cost[:, None] // powers % 10, NO_LABEL))
