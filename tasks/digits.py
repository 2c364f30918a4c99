"""Multi-digit addition and multiplication: the answer's digits, on longer numbers than trained.

One character is one token. Numbers may be written with their least significant digit first
(``reverse``), and padded with zeros to one width (``pad``): both operands to the digits of the
longest in any split, the answer to the longest answer that those operands can have.

>>> written(57, 68, sign="+", answer=125)
('57+68', '125')
>>> written(57, 68, sign="+", answer=125, reverse=True)
('75+86', '521')
>>> written(57, 8, sign="*", answer=456, reverse=True)
('75*8', '654')
>>> written(57, 68, sign="+", answer=125, operand_width=3, answer_width=4)
('057+068', '0125')

Rows are spread equally over the pairs of operand lengths (i digits, j digits), as in the evaluation
of Abacus embeddings (github.com/mcleish7/arithmetic, commit 86022a57), which trains on lengths up
to 20 x 20 for addition and 15 x 15 for multiplication, with reversed digits and without padding.
Difficulty is the length of the longer operand. No pair of operands is in two splits; (a, b) and
(b, a) are two pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tasks.base.about import About
from tasks.base.generated import check_range, equal_shares
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask

_EVALUATION_SHARE = 0.2
"""Largest share of a pair of lengths that iid may take away from train."""


def written(
    left: int,
    right: int,
    *,
    sign: str,
    answer: int,
    reverse: bool = False,
    operand_width: int = 0,
    answer_width: int = 0,
) -> tuple[str, str]:
    """Return question and answer as text, zero-padded to the widths, digits reversed if asked."""
    step = -1 if reverse else 1
    operands = (f"{number:0{operand_width}d}"[::step] for number in (left, right))
    return sign.join(operands), f"{answer:0{answer_width}d}"[::step]


def first_number(digits: int) -> int:
    """Return the smallest number of ``digits`` digits; 0 has one."""
    return 10 ** (digits - 1) if digits > 1 else 0


def count_pairs(lengths: tuple[int, int]) -> int:
    """Return how many pairs of numbers have these lengths."""
    counts = [10**digits - first_number(digits) for digits in lengths]
    return counts[0] * counts[1]


def distinct_pairs(
    generator: random.Random, lengths: tuple[int, int], count: int
) -> list[tuple[int, int]]:
    """Return ``count`` distinct pairs of numbers of these lengths, each set equally likely."""
    first, second = (first_number(digits) for digits in lengths)
    total = count_pairs(lengths)
    width = 10 ** lengths[1] - second
    if total <= 4 * count:
        chosen: Iterable[int] = generator.sample(range(total), count)
    else:
        # Rejection: random.sample takes no range of more than 2**63 numbers.
        numbers: dict[int, None] = {}
        while len(numbers) < count:
            numbers[generator.randrange(total)] = None
        chosen = numbers
    return [(first + number // width, second + number % width) for number in chosen]


@dataclass(frozen=True, kw_only=True)
class Digits(ExampleTask):
    """Base of addition and multiplication, with splits by the length of the operands."""

    difficulty_name: ClassVar[str] = "digits of the longer operand"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid_longer",)
    in_distribution_split = "iid"

    sign: ClassVar[str]

    train_digits: tuple[int, int]
    """Fewest and most digits of each operand in train and iid."""
    valid_digits: tuple[int, int]
    """Digits of the longer operand in valid_longer; the other has train's fewest or more."""
    test_digits: tuple[int, int]
    """Digits of the longer operand in longer; the other has train's fewest or more."""
    train_rows: int = 100_000
    """Training rows, all distinct."""
    iid_rows: int = 1000
    """Rows of iid."""
    valid_rows: int = 1000
    """Rows of valid_longer; 0 leaves the split and valid_digits out."""
    test_rows: int = 2000
    """Rows of longer."""
    reverse: bool = False
    """Write operands and answer with the least significant digit first."""
    pad: bool = False
    """Pad operands and answers with zeros to the longest of all splits."""
    seed: int = 0
    """Seed of the generated rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "train_digits", minimum=1)
        require(self, "valid_rows", self.valid_rows >= 0, "at least 0")
        if self.valid_rows:
            check_range(self, "valid_digits", minimum=1, above="train_digits")
        below = "valid_digits" if self.valid_rows else "train_digits"
        check_range(self, "test_digits", minimum=1, above=below)
        for rows in ("train_rows", "iid_rows", "test_rows"):
            require(self, rows, getattr(self, rows) >= 1, "at least 1")

    def answer(self, left: int, right: int) -> int:
        """Return the result of the operation."""
        raise NotImplementedError

    def answer_width(self) -> int:
        """Return the most digits that an answer has in any split."""
        longest = 10 ** self.test_digits[1] - 1
        return len(str(self.answer(longest, longest)))

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, valid_longer (if it has rows), iid and longer, without overlap."""
        train, iid = self._in_distribution()
        splits = {"train": train}
        if self.valid_rows:
            splits["valid_longer"] = self._longer(
                "valid_longer", self.valid_rows, self.valid_digits
            )
        return splits | {
            "iid": iid,
            "longer": self._longer("longer", self.test_rows, self.test_digits),
        }

    def _in_distribution(self) -> tuple[list[Example], list[Example]]:
        fewest, most = self.train_digits
        cells = self._cells(range(fewest, most + 1), fewest)
        iid_shares = self._shares("iid_rows", cells, largest=_EVALUATION_SHARE)
        train_shares = self._shares("train_rows", cells, largest=1 - _EVALUATION_SHARE)
        train, iid = [], []
        for (i, j), num_iid, num_train in zip(cells, iid_shares, train_shares, strict=True):
            generator = random.Random(f"{self.name} {self.seed} train {i} {j}")
            pairs = distinct_pairs(generator, (i, j), num_iid + num_train)
            generator.shuffle(pairs)
            iid += [self._example(left, right) for left, right in pairs[:num_iid]]
            train += [self._example(left, right) for left, right in pairs[num_iid:]]
        return train, iid

    def _longer(self, split: str, rows: int, digits: tuple[int, int]) -> list[Example]:
        cells = self._cells(range(digits[0], digits[1] + 1), self.train_digits[0])
        # Equally over the longer operand's length first, so that every difficulty weighs the same.
        by_length: dict[int, list[tuple[int, int]]] = {}
        for cell in cells:
            by_length.setdefault(max(cell), []).append(cell)
        examples = []
        shares = equal_shares(rows, [rows] * len(by_length))
        for lengths, share in zip(by_length.values(), shares, strict=True):
            capacities = [count_pairs(cell) for cell in lengths]
            for (i, j), count in zip(lengths, equal_shares(share, capacities), strict=True):
                generator = random.Random(f"{self.name} {self.seed} {split} {i} {j}")
                pairs = distinct_pairs(generator, (i, j), count)
                examples += [self._example(left, right) for left, right in pairs]
        return examples

    def _cells(self, longer: range, fewest: int) -> list[tuple[int, int]]:
        """Return the pairs of lengths whose longer one is in a range, the other from ``fewest``."""
        return [
            (i, j)
            for i in range(fewest, longer.stop)
            for j in range(fewest, longer.stop)
            if max(i, j) in longer
        ]

    def _shares(self, rows: str, cells: list[tuple[int, int]], *, largest: float) -> list[int]:
        room = [int(largest * count_pairs(cell)) for cell in cells]
        require(self, rows, getattr(self, rows) <= sum(room), f"at most {sum(room)}")
        return equal_shares(getattr(self, rows), room)

    def _example(self, left: int, right: int) -> Example:
        question, answer = written(
            left,
            right,
            sign=self.sign,
            answer=self.answer(left, right),
            reverse=self.reverse,
            operand_width=self.test_digits[1] if self.pad else 0,
            answer_width=self.answer_width() if self.pad else 0,
        )
        longer = max(len(str(left)), len(str(right)))
        return Example(
            source=tuple(question),
            target=tuple(answer),
            category=f"{longer} digits",
            difficulty=float(longer),
        )


@dataclass(frozen=True, kw_only=True)
class Addition(Digits):
    """Sum of two numbers."""

    name: ClassVar[str] = "addition"
    about: ClassVar[About] = About(
        family="length generalisation",
        hard="carries over more digits than in train",
        source="arXiv 2405.17399 (Abacus); mcleish7/arithmetic 86022a57",
        published=(
            "setting: operands of up to 20 digits, reversed, not padded; tests of every pair of "
            "lengths (repository)",
        ),
    )
    sign: ClassVar[str] = "+"

    train_digits: tuple[int, int] = (1, 10)
    """Fewest and most digits of each operand in train and iid."""
    valid_digits: tuple[int, int] = (11, 12)
    """Digits of the longer operand in valid_longer; the other has train's fewest or more."""
    test_digits: tuple[int, int] = (13, 20)
    """Digits of the longer operand in longer; the other has train's fewest or more."""

    def answer(self, left: int, right: int) -> int:
        """Return the sum."""
        return left + right


@dataclass(frozen=True, kw_only=True)
class Multiplication(Digits):
    """Product of two numbers."""

    name: ClassVar[str] = "multiplication"
    about: ClassVar[About] = About(
        family="length generalisation",
        hard="carries over more digits than in train",
        source="arXiv 2405.17399 (Abacus); mcleish7/arithmetic 86022a57",
        published=(
            "setting: operands of up to 15 digits, reversed, not padded; tests of every pair of "
            "lengths (repository)",
        ),
    )
    sign: ClassVar[str] = "*"

    train_digits: tuple[int, int] = (1, 5)
    """Fewest and most digits of each operand in train and iid."""
    valid_digits: tuple[int, int] = (6, 6)
    """Digits of the longer operand in valid_longer; the other has train's fewest or more."""
    test_digits: tuple[int, int] = (7, 8)
    """Digits of the longer operand in longer; the other has train's fewest or more."""

    def answer(self, left: int, right: int) -> int:
        """Return the product."""
        return left * right
