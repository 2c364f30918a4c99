"""Any generator of reasoning_gym as a task: its questions without the words around them.

Needs the extra ``gym`` (``pip install 'moeut-suite[gym]'``). Item i of a seed is item i − 1 of the
next seed, so splits lie ``APART`` seeds from one another, and none may be as large.

A model that starts from nothing reads the payload: what all questions of a generator begin or end
with is cut off, up to a border between words.

>>> strip = payload_of(["Add 1 + 2 now.", "Add 17 + 3 now.", "Add 20 + 5 now."])
>>> strip("Add 17 + 3 now.")
'17 + 3'

One character is one token, of question and answer. Answers count as right where they are the
generator's own; where several are valid, that is not what it would say itself.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tasks.base.about import About
from tasks.base.options import OptionError, nearest, require
from tasks.base.task import Example, ExampleTask

APART = 10_000_000
"""Seeds between two splits."""
SAMPLE = 300
"""Questions of train that the common words are found in."""
NO_GYM = "needs reasoning_gym: pip install 'moeut-suite[gym]'"
UNFIT = {
    "graph_color": "its answers are for its own scorer alone",
    "propositional_logic": "its answers are for its own scorer alone",
}
"""Generators that give no answer of their own."""
SEVERAL = ("n_queens", "tower_of_hanoi", "shortest_path", "countdown", "course_schedule")
"""Some generators of which another answer may be as good."""


def _shared(texts: Sequence[str]) -> str:
    """Return what all texts begin with."""
    first, last = min(texts), max(texts)
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in pairs)


def payload_of(questions: Sequence[str]) -> Callable[[str], str]:
    """Return what cuts off the beginning and the end that all questions share."""
    first = _shared(questions)
    while first and (first[-1].isalnum() or first[-1] in "-([{|"):
        first = first[:-1]
    rests = [question[len(first) :] for question in questions]
    last = _shared([rest[::-1] for rest in rests])[::-1]
    while last and (last[0].isalnum() or last[0] in ")]}|"):
        last = last[1:]

    def strip(question: str) -> str:
        rest = question.removeprefix(first)
        return rest.removesuffix(last).strip() if last else rest.strip()

    return strip


@dataclass(frozen=True, kw_only=True)
class Gym(ExampleTask):
    """Questions of a generator of reasoning_gym, character by character."""

    name: ClassVar[str] = "gym"
    difficulty_name: ClassVar[str] = "characters of the question, to the next ten"
    selection_splits: ClassVar[tuple[str, ...]] = ("valid",)
    in_distribution_split = "valid"
    about: ClassVar[About] = About(
        family="imported",
        hard="as its generator: over a hundred, from sums to circuits",
        source="arXiv 2505.24760; open-thought/reasoning-gym 49b07130 (PyPI 0.1.25)",
        fetch="pip install 'moeut-suite[gym]'",
    )

    generator: str = "chain_sum"
    """Name of the generator, such as chain_sum, gcd, count_bits, mini_sudoku, maze."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the generator for train, valid and test."""
    harder: dict[str, Any] = field(default_factory=dict)
    """Options of the generator for a further split, harder; empty: no such split."""
    strip: bool = True
    """Cut off the words that all questions share."""
    train_rows: int = 20_000
    """Rows of train."""
    valid_rows: int = 500
    """Rows of valid, which may choose the weights."""
    test_rows: int = 1000
    """Rows of test, and of harder."""
    seed: int = 0
    """Seed of train; the other splits are ten million seeds apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_rows", "valid_rows", "test_rows"):
            require(self, name, 1 <= getattr(self, name) < APART, f"from 1 to below {APART:,}")
        if self.generator in UNFIT:
            raise OptionError("task.generator", self.generator, UNFIT[self.generator])

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, valid, test and, where there are options for it, harder.

        Raises:
            OptionError: no such generator, options that it does not take, or no reasoning_gym.
        """
        sizes = {"train": self.train_rows, "valid": self.valid_rows, "test": self.test_rows}
        pairs = {
            name: self.pairs(self.seed + number * APART, rows, self.settings)
            for number, (name, rows) in enumerate(sizes.items())
        }
        if self.harder:
            settings = self.settings | self.harder
            pairs["harder"] = self.pairs(self.seed + 3 * APART, self.test_rows, settings)
        sample = [question for question, _ in pairs["train"][:SAMPLE]]
        strip = payload_of(sample) if self.strip else str.strip
        return {
            name: [_example(strip(question), answer) for question, answer in found]
            for name, found in pairs.items()
        }

    def pairs(self, seed: int, rows: int, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return questions and answers as the generator gives them.

        Raises:
            OptionError: no such generator, options that it does not take, or no reasoning_gym.
        """
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise OptionError("task.name", "gym", f"{NO_GYM} ({error})") from None
        if self.generator not in DATASETS:
            said = f"no such generator{nearest(self.generator, DATASETS)}"
            raise OptionError("task.generator", self.generator, said)
        try:
            made = reasoning_gym.create_dataset(self.generator, seed=seed, size=rows, **settings)
        except (TypeError, AssertionError, ValueError) as error:
            raise OptionError("task.settings", dict(settings), f"not taken: {error}") from None
        state = random.getstate()
        try:
            return [_item(made, seed, number) for number in range(rows)]
        finally:
            random.setstate(state)


def _item(made: Any, seed: int, number: int) -> tuple[str, str]:
    """Return question and answer of an item, which ``list_functions`` draws partly elsewhere."""
    random.seed(f"gym {seed + number}")  # the global generator, which no seed reaches otherwise
    item = made[number]
    return item["question"], str(item["answer"])


def _example(question: str, answer: str) -> Example:
    return Example(tuple(question), tuple(answer), difficulty=float(10 * -(-len(question) // 10)))
