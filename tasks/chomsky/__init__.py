"""The fifteen tasks of the Chomsky-hierarchy suite: which machines a network can learn to be.

The input is followed by as many ``_`` as there are outputs, and the outputs are read there. Numbers
of symbols and labels are those of the published code. Outputs behind an end are not scored. Random
numbers are our own: the distributions of inputs are the published ones, the rows are not.

>>> task = Chomsky(language="stack_manipulation", train_lengths=(4, 4))
>>> row = task.row([0, 1, 2, 4])
>>> print(*row.source)
0 1 pop push1 _ _ _ _ _
>>> print(*row.target)
<unscored> <unscored> <unscored> <unscored> 1 0 end <unscored> <unscored>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.positions import NO_LABEL, Rows, tokens_of
from tasks.base.task import Example
from tasks.chomsky.context_free import CONTEXT_FREE
from tasks.chomsky.context_sensitive import CONTEXT_SENSITIVE
from tasks.chomsky.language import Language, Outputs
from tasks.chomsky.regular import REGULAR

LANGUAGES: dict[str, Language] = REGULAR | CONTEXT_FREE | CONTEXT_SENSITIVE
"""The tasks of the suite by name, in the order of the hierarchy."""

SLOT = "_"
"""Source token at which an output is read."""


@dataclass(frozen=True, kw_only=True)
class Chomsky(LengthTask):
    """A task of the Chomsky hierarchy, on longer inputs than trained."""

    name: ClassVar[str] = "chomsky"
    difficulty_name: ClassVar[str] = "length of the input"
    about: ClassVar[About] = About(
        family="formal languages",
        hard="counting, a stack or a tape, on inputs longer than any of train",
        source="arXiv 2207.02098; google-deepmind/neural_networks_chomsky_hierarchy 2b8eb4be",
        published=(
            "chance of mean_over_lengths: 50 % with two labels, 20 % modulo 5 (repository)",
            "the paper scores lengths 41 to 500; its example script 42 to 100",
        ),
    )

    language: Literal[
        "even_pairs",
        "parity_check",
        "cycle_navigation",
        "modular_arithmetic",
        "modular_arithmetic_brackets",
        "reverse_string",
        "stack_manipulation",
        "solve_equation",
        "missing_duplicate_string",
        "duplicate_string",
        "odds_first",
        "binary_addition",
        "binary_multiplication",
        "compute_sqrt",
        "bucket_sort",
    ] = "parity_check"
    """Which of the fifteen; regular ones first, then context-free, then context-sensitive."""
    train_lengths: tuple[int, int] = (1, 40)
    """Shortest and longest input of train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [41, 50, 60, 70, 80, 90, 100])
    """Lengths of longer."""

    @property
    def _language(self) -> Language:
        return LANGUAGES[self.language]

    def symbols(self) -> tuple[str, ...]:
        """Return the published symbols, and the one that outputs are read at."""
        return (*self._language.symbols, SLOT)

    def labels(self) -> tuple[str, ...]:
        """Return the published outputs."""
        return self._language.labels

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return inputs of a length with their outputs."""
        return self._rows(*self._language.rows(draws, length))

    def _rows(self, inputs: np.ndarray, outputs_and_scored: Outputs) -> Rows:
        outputs, scored = outputs_and_scored
        slots = np.full(outputs.shape, len(self._language.symbols))
        nothing = np.full(inputs.shape, NO_LABEL)
        return Rows(
            np.concatenate([inputs, slots], axis=1),
            np.concatenate([nothing, np.where(scored, outputs, NO_LABEL)], axis=1),
        )

    def row(self, inputs: Sequence[int]) -> Example:
        """Return the row of one input, given by the numbers of its symbols."""
        numbers = np.array([inputs])
        made = self._rows(numbers, self._language.solve(numbers))
        return Example(*tokens_of(self, made)[0], difficulty=float(len(inputs)))
