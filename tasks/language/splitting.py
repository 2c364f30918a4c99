"""Which split a document belongs to: by a hash of its text, or as upstream says.

Where a corpus comes without splits, only the hash of a document's text decides, so that neither
the order of the documents nor how they are cut into files moves one, and two copies of a text can
never lie on both sides:

>>> rule = SplitRule(validation_fraction=0.3, test_fraction=0.3)
>>> [rule.split(None, digest(text)) for text in ("one", "two", "three", "four", "five")]
['test', 'train', 'validation', 'train', 'validation']

Where upstream fixes a validation split, it is used, and the test split is cut from it by hash
unless upstream fixes that too. Where upstream fixes only a test split, validation is cut from the
training text. There a text may be in several splits: it is kept in one of them, test before
validation before train, and every copy left out is counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "validation", "test")
HELD_OUT = ("test", "validation")
"""Splits that no model is trained on; the earlier keeps a text that both have."""
DIGEST_BYTES = 16


def digest(text: str) -> bytes:
    """Return the first 16 bytes of the SHA-256 of a text: equal only for equal texts."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:DIGEST_BYTES]


@dataclass(frozen=True)
class SplitRule:
    """How documents of a corpus are divided."""

    validation_fraction: float
    """Share of the documents held out for validation where upstream fixes no split."""
    test_fraction: float
    """Share held out for the test."""
    fixed: frozenset[str] = frozenset()
    """Splits that upstream fixes; where it fixes any, a part without one is training text."""

    def split(self, part_split: str | None, document: bytes) -> str:
        """Return the split of a document from its part's split and its digest."""
        # The last 8 bytes, as a number from 0 up to 1.
        place = int.from_bytes(document[-8:], "big") / 2**64
        if not self.fixed:
            if place < self.test_fraction:
                return "test"
            held_out = self.test_fraction + self.validation_fraction
            return "validation" if place < held_out else "train"
        if part_split == "validation" and "test" not in self.fixed:
            # The two fractions say how the one held-out split of upstream is shared.
            both = self.test_fraction + self.validation_fraction
            return "test" if place * both < self.test_fraction else "validation"
        if part_split in ("validation", "test"):
            return part_split
        if "validation" not in self.fixed and place < self.validation_fraction:
            return "validation"
        return "train"

    def may_reach(self, part_split: str | None) -> frozenset[str]:
        """Return the splits that documents of a part can come to."""
        if not self.fixed:
            return frozenset(SPLITS)
        if part_split == "validation" and "test" not in self.fixed:
            return frozenset(HELD_OUT)
        if part_split in ("validation", "test"):
            return frozenset({part_split})
        return frozenset({"train"} if "validation" in self.fixed else {"train", "validation"})


class DigestSet:
    """Digests of documents, 16 bytes each, looked up by halving."""

    def __init__(self, digests: np.ndarray) -> None:
        """Sort digests, rows of 16 bytes."""
        rows = np.ascontiguousarray(digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        self._sorted = np.unique(rows.view(f"S{DIGEST_BYTES}").ravel())

    def __contains__(self, document: bytes) -> bool:
        key = np.array(document, dtype=f"S{DIGEST_BYTES}")
        place = int(np.searchsorted(self._sorted, key))
        return place < len(self._sorted) and self._sorted[place] == key


def first_occurrences(digests: Iterable[bytes], seen: set[bytes]) -> np.ndarray:
    """Return for each of D digests whether it is new, (D,) bool, and add it to those seen."""
    new = []
    for document in digests:
        new.append(document not in seen)
        seen.add(document)
    return np.array(new, dtype=bool)
