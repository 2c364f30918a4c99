"""Word problems of finite groups: at each position the product of all elements up to it.

>>> task = WordProblem(group="Z5", train_lengths=(4, 4), test_lengths=[8])
>>> row = task.row([1, 3, 2, 0])
>>> row.target
('1', '4', '1', '1')

Elements are numbered as in the published files (``tasks.groups``). Z2 with all elements is parity;
Z5 with ``elements: [4, 0, 1]`` is navigation on a cycle of five, S5 with two generators a walk on
the permutations of five. S3 and S4 are solvable, S5 and A5 are not: no circuit of constant depth is
known for them, and Transformers need more depth the longer the word. A4_x_Z5, A5 and Z60 have 60
elements each, so they differ in structure alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import OptionError, require
from tasks.base.positions import Rows, tokens_of
from tasks.base.task import Example, Intermediate
from tasks.groups import group_table, running_products


@dataclass(frozen=True, kw_only=True)
class WordProblem(LengthTask):
    """Running products of a finite group: what state is the machine in after each symbol?"""

    name: ClassVar[str] = "word_problem"
    difficulty_name: ClassVar[str] = "elements of the word"
    about: ClassVar[About] = About(
        family="state tracking",
        hard="a state that each symbol changes; without a solvable group, no shortcut",
        source="arXiv 2404.08819; jopetty/word-problem 8f910f92",
        published=(
            "result: the fewest layers with sequence accuracy above 0.9 at length k; it grows with "
            "k for A5 and S5 (paper)",
            "protocol: train and test on one length, k = 2 to 32, up to a million rows, 512 wide, "
            "8 heads, AdamW 1e-4 (repository)",
        ),
    )

    group: str = "S5"
    """S_n, A_n, Z_n or D_n, as S5, or a direct product, as A4_x_Z5."""
    elements: list[int] = field(default_factory=list)
    """Numbers of the elements that words are made of; empty: all."""
    train_lengths: tuple[int, int] = (1, 16)
    """Shortest and longest word of train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [20, 24, 32, 48, 64])
    """Lengths of longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            order = len(group_table(self.group))
        except ValueError as error:
            raise OptionError("task.group", self.group, f"must be {error}") from None
        fits = all(0 <= number < order for number in self.elements)
        require(self, "elements", fits, f"numbers from 0 to {order - 1}")
        distinct = len(set(self.elements)) == len(self.elements)
        require(self, "elements", distinct, "distinct numbers")

    def symbols(self) -> tuple[str, ...]:
        """Return the numbers of all elements."""
        return tuple(map(str, range(len(group_table(self.group)))))

    def labels(self) -> tuple[str, ...]:
        """Return the numbers of all elements."""
        return self.symbols()

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return words of random elements with their running products."""
        chosen = self.elements or range(len(group_table(self.group)))
        words = np.array(chosen)[draws.integers(len(chosen), length)]
        return self.rows(words)

    def rows(self, words: np.ndarray) -> Rows:
        """Return words (N, T), given by the numbers of their elements, with their products."""
        return Rows(words, running_products(group_table(self.group), words))

    def intermediate_values(self, example: Example) -> list[Intermediate]:
        """Return the product of the first 2, 4, 8, … elements, and of all of them."""
        length = len(example.source)
        counts = {2**power for power in range(1, length.bit_length())} | {length}
        return [
            Intermediate(
                name=f"after element {count}",
                value=example.target[count - 1],
                token=count - 1,
                key=" ".join(example.source[:count]),
            )
            for count in sorted(counts)
            if count <= length
        ]

    def row(self, word: Sequence[int]) -> Example:
        """Return the row of one word."""
        return Example(*tokens_of(self, self.rows(np.array([word])))[0], difficulty=len(word))
