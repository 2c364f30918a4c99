"""Prefix sums of bits: at each position the parity of all bits up to it.

>>> task = PrefixSums(train_lengths=(8, 8), test_lengths=[12])
>>> row = task.split("train")[0]
>>> [sum(map(int, row.source[: end + 1])) % 2 for end in range(8)] == [*map(int, row.target)]
True
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.positions import Rows


def prefix_sums(bits: np.ndarray) -> np.ndarray:
    """Return the parity of the bits (N, T) up to each position, (N, T)."""
    return bits.cumsum(axis=1) % 2


@dataclass(frozen=True, kw_only=True)
class PrefixSums(LengthTask):
    """Parity of all bits so far, at every position: trained on 32 bits, tested up to 512."""

    name: ClassVar[str] = "prefix_sums"

    about: ClassVar[About] = About(
        family="length generalisation",
        hard="parity carried along, on inputs sixteen times as long",
        source="arXiv 2106.04537 (DeepThinking, easy-to-hard-data 1.0.0)",
        published=("protocol: trained on 32 bits, tested on 44 to 512 (repository)",),
    )

    train_lengths: tuple[int, int] = (32, 32)
    """Fewest and most bits of train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [44, 48, 64, 72, 128, 256, 512])
    """Bits of longer."""

    def symbols(self) -> tuple[str, ...]:
        """Return the bits."""
        return ("0", "1")

    def labels(self) -> tuple[str, ...]:
        """Return the bits."""
        return ("0", "1")

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return rows of ``length`` fair bits."""
        bits = draws.integers(2, length)
        return Rows(bits, prefix_sums(bits))
