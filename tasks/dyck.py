"""Brackets of k kinds, at most m open at a time: which bracket has to be closed next?

The words of Dyck-(k, m) are drawn as the published generator draws them: with nothing open a
bracket of any kind opens, with m open the last one closes, and in between it opens or closes with
equal probability. Here the length is given: a word is drawn from the distribution of that generator
among the words of this length.

A label stands before each closing bracket and names it; it is the innermost open one:

>>> Dyck.row("(a (b b) a) END".split()).target
('<unscored>', 'b)', 'a)', 'END')

Before END the label is END: nothing is open there. As the next token gives it away, models are
causal. The published score counts a bracket as right where its probability is above 0.8, and takes
the mean over distances between the brackets of a pair; here the most likely label counts, and there
is a table by distance.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.metrics import Answers
from tasks.base.options import exact_text, require
from tasks.base.positions import NO_LABEL, Rows
from tasks.base.task import UNSCORED, Example

END = "END"


def innermost(words: Sequence[str]) -> list[tuple[str, int]]:
    """Return for each bracket of a word what may close after it, and how many tokens it is open.

    Raises:
        ValueError: a bracket closes that is not the innermost open one.
    """
    stack: list[tuple[str, int]] = []
    found = []
    for place, token in enumerate(words):
        if token.startswith("("):
            stack.append((f"{token[1:]})", place))
        elif not stack or stack.pop()[0] != token:
            raise ValueError(f"{' '.join(words)!r}: token {place + 1}, {token!r}, closes nothing")
        closer, opened = stack[-1] if stack else (END, -1)
        found.append((closer, place + 1 - opened))
    return found


@functools.lru_cache(maxsize=64)
def _open_probability(length: int, most: int) -> np.ndarray:
    """Return (length + 1, m + 1): the probability that a bracket opens, by tokens left, depth.

    It is that of the generator, given that the word ends after the tokens that are left:
    weight[n, d] is the probability of reaching depth 0 from depth d in n steps. At most ``most``
    brackets are open.
    """
    free = np.array([1.0, *[0.5] * (most - 1), 0.0])  # of opening, nothing else known
    weight = np.zeros((length + 1, most + 2))
    weight[0, 0] = 1.0
    opens = np.zeros((length + 1, most + 1))
    for left in range(1, length + 1):
        up = free * weight[left - 1, 1:]
        down = (1 - free) * np.concatenate([[0.0], weight[left - 1, :most]])
        total = up + down
        weight[left, :-1] = total / max(total.max(), 1e-300)  # only their ratios count
        opens[left] = np.divide(up, total, out=np.zeros_like(up), where=total > 0)
    return opens


@dataclass(frozen=True, kw_only=True)
class Dyck(LengthTask):
    """Well-nested brackets of several kinds and bounded depth, on longer words than trained."""

    name: ClassVar[str] = "dyck"
    difficulty_name: ClassVar[str] = "brackets of a word"
    is_causal: ClassVar[bool] = True
    shortest: ClassVar[int] = 2
    about: ClassVar[About] = About(
        family="formal languages",
        hard="a stack of bounded depth, over words ten times as long as those of train",
        source="Dyck-(k, m) of bnewm0609/eos-decision 633d0d87",
        published=(
            "sizes: m = 4 trains on 88–116 and tests on 950–1,050 tokens, m = 6 184–228 and "
            "1,840–2,280, m = 8 328–396 and 3,280–3,960 (its configs)",
        ),
    )

    kinds: int = 2
    """Kinds of brackets (k), named a, b, …; at most 26."""
    max_depth: int = 4
    """Most brackets that are open at a time (m)."""
    train_lengths: tuple[int, int] = (88, 116)
    """Fewest and most brackets of a word in train and iid; of an odd number one fewer."""
    test_lengths: list[int] = field(default_factory=lambda: [200, 400, 950, 1000, 1050])
    """Brackets of a word in longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "kinds", 1 <= self.kinds <= 26, "1 to 26")
        require(self, "max_depth", self.max_depth >= 1, "at least 1")

    def symbols(self) -> tuple[str, ...]:
        """Return the opening brackets, and the closing ones."""
        names = [chr(ord("a") + kind) for kind in range(self.kinds)]
        return (*(f"({name}" for name in names), *(f"{name})" for name in names))

    def labels(self) -> tuple[str, ...]:
        """Return the closing brackets, and the end."""
        return (*self.symbols()[self.kinds :], END)

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return words of a length with what closes before each closing bracket, and the end."""
        length -= length % 2
        opens = _open_probability(length, self.max_depth)
        coins, kinds = draws.uniform(length), draws.integers(self.kinds, length)
        by_place = np.ascontiguousarray(coins.T)
        is_open = np.empty((length, len(draws)), dtype=bool)
        open_ones = np.zeros((length + 1, len(draws)), dtype=np.int64)  # before each place
        for place in range(length):
            np.less(by_place[place], opens[length - place][open_ones[place]], out=is_open[place])
            np.add(open_ones[place], np.where(is_open[place], 1, -1), out=open_ones[place + 1])
        return self._rows(is_open.T, open_ones.T, kinds)

    def _rows(self, is_open: np.ndarray, open_ones: np.ndarray, kinds: np.ndarray) -> Rows:
        """Return the rows of some words.

        Args:
            is_open: (N, T) whether each bracket opens.
            open_ones: (N, T + 1) how many are open before each bracket, and at the end.
            kinds: (N, T) the kind of each bracket that opens.
        """
        places = np.arange(is_open.shape[1])
        named = np.array(kinds)
        for depth in range(1, self.max_depth + 1):
            # What closes at a depth closes the last one that opened to it.
            opens = is_open & (open_ones[:, 1:] == depth)
            last = np.maximum.accumulate(np.where(opens, places, 0), axis=1)
            closes = ~is_open & (open_ones[:, :-1] == depth)
            np.copyto(named, np.take_along_axis(kinds, last, axis=1), where=closes)
        source = np.where(is_open, named, named + self.kinds)
        target = np.full_like(source, self.kinds)  # at the last place: the end
        # The label of a closing bracket stands at the token before it.
        target[:, :-1] = np.where(is_open[:, 1:], NO_LABEL, named[:, 1:])
        return Rows(source, target)

    @staticmethod
    def row(words: Sequence[str]) -> Example:
        """Return the row of one word, which ends with END.

        Raises:
            ValueError: no such word.
        """
        *brackets, end = words
        closers = [closer for closer, _ in innermost(brackets)]
        if end != END or closers[-1] != END:
            raise ValueError(f"{' '.join(words)!r}: expected a word that ends with {END}")
        following = [*brackets[1:], END]
        target = [
            closer if token == closer else UNSCORED
            for closer, token in zip(closers, following, strict=True)
        ]
        return Example(tuple(brackets), tuple(target), difficulty=float(len(brackets)))

    def label_tables(self, answers: Answers) -> dict[str, dict[str, dict[str, float]]]:
        """Return the share of right closing brackets by distance from the opening one."""
        right: dict[int, list[bool]] = collections.defaultdict(list)
        for example, prediction in zip(answers.examples, answers.predictions, strict=True):
            about = innermost(example.source)
            for label, written, (_, distance) in zip(
                example.target, prediction.tokens, about, strict=True
            ):
                if label not in (UNSCORED, END):
                    right[2 ** (distance.bit_length() - 1)].append(label == written)
        return {
            "distance from": {
                exact_text(key): {"label_accuracy": sum(found) / len(found), "rows": len(found)}
                for key, found in sorted(right.items())
            }
        }
