"""The flip-flop language: read the bit that was last written, whatever came in between.

Instructions w (write), r (read) and i (ignore) alternate with bits. The first instruction writes,
the last one reads; the bit after a read is the one last written, and all others are fair:

>>> row = FlipFlop.row("w1i0r1w0r0")
>>> print(*(label.replace(UNSCORED, ".") for label in row.target))
. . . . 1 . . . 0 .

The label of a read stands at its r. The bit follows in the input, so models are causal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import exact_text, require
from tasks.base.positions import NO_LABEL, Rows
from tasks.base.task import UNSCORED, Example

WRITE, IGNORE, READ, ZERO = 0, 1, 2, 3
SYMBOLS = ("w", "i", "r", "0", "1")


@dataclass(frozen=True, kw_only=True)
class FlipFlop(LengthTask):
    """Remember one bit past distractors, in longer and in sparser rows than trained."""

    name: ClassVar[str] = "flip_flop"
    difficulty_name: ClassVar[str] = "length, tokens"
    is_causal: ClassVar[bool] = True
    shortest: ClassVar[int] = 4
    about: ClassVar[About] = About(
        family="formal languages",
        hard="one bit of memory without a single slip, however far back it was written",
        source="arXiv 2306.00946; JRC1995/InvestigatingRecurrentTransformers 58026b24",
        published=(
            "an LSTM extrapolates perfectly, Transformers keep a long tail of errors (abstract)",
            "recipe: 512 tokens, ignore 0.8; tests 512 and 1,024 with 0.8, 0.1, 0.98 (repository)",
        ),
    )

    ignore: float = 0.8
    """Probability of an ignore in train and iid; reads and writes share the rest."""
    test_ignore: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.98])
    """The same in longer, in turn; each is a category."""
    train_lengths: tuple[int, int] = (512, 512)
    """Fewest and most tokens of train and iid; of an odd number one fewer."""
    test_lengths: list[int] = field(default_factory=lambda: [512, 1024])
    """Tokens of longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "ignore", 0 <= self.ignore <= 1, "from 0 to 1")
        fits = all(0 <= share <= 1 for share in self.test_ignore)
        require(self, "test_ignore", bool(self.test_ignore) and fits, "one or more from 0 to 1")

    @property
    def allows_trained_lengths(self) -> bool:
        """Return true: rows of train's length with other distractors are a test, too."""
        return True

    def symbols(self) -> tuple[str, ...]:
        """Return instructions and bits, in the order of the published data."""
        return SYMBOLS

    def labels(self) -> tuple[str, ...]:
        """Return the bits."""
        return ("0", "1")

    def variants(self) -> list[str]:
        """Return a category for each share of ignores in longer."""
        return [f"ignore {exact_text(share)}" for share in self.test_ignore]

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return rows of a length with train's share of ignores."""
        return self._rows(draws, length, self.ignore)

    def draw_variant(self, draws: Draws, length: int, variant: str) -> Rows:
        """Return rows of a length with the share of ignores that a category names."""
        shares = dict(zip(self.variants(), self.test_ignore, strict=True))
        return self._rows(draws, length, shares.get(variant, self.ignore))

    def _rows(self, draws: Draws, length: int, ignore: float) -> Rows:
        size = length // 2
        numbers = draws.bits(size)
        coins = (numbers >> np.uint64(11)) * 2.0**-53
        instructions = np.where(coins < ignore, IGNORE, WRITE)
        instructions[coins >= (1 + ignore) / 2] = READ
        instructions[:, 0], instructions[:, -1] = WRITE, READ
        bits = (numbers & np.uint64(1)).astype(np.int64)  # no part of the coin
        # The place of the last write at or before each instruction.
        places = np.where(instructions == WRITE, np.arange(size), 0)
        written = np.take_along_axis(bits, np.maximum.accumulate(places, axis=1), axis=1)
        reads = instructions == READ
        source = np.empty((len(draws), 2 * size), dtype=np.int64)
        source[:, ::2], source[:, 1::2] = instructions, ZERO + np.where(reads, written, bits)
        target = np.full_like(source, NO_LABEL)
        target[:, ::2] = np.where(reads, written, NO_LABEL)
        return Rows(source, target)

    @staticmethod
    def row(text: str) -> Example:
        """Return the row of one string, its reads labelled with what was last written."""
        target, last = [], UNSCORED
        for instruction, bit in zip(text[::2], text[1::2], strict=True):
            last = bit if instruction == "w" else last
            target += [last if instruction == "r" else UNSCORED, UNSCORED]
        return Example(tuple(text), tuple(target), difficulty=float(len(text)))
