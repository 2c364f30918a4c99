"""Localism: is a source answered as its functions one by one are, each on the answer before?

A group of the official file has one function a line, ``*n`` standing for the answer of line n, and
in the end the whole source with its target:

>>> group, = read_groups(
...     ["unrolled\\trepeat A B \\t*1", "unrolled\\techo *1\\tA B A B B",
...      "original\\techo repeat A B\\tA B A B B"], "a file")
>>> [" ".join(step.tokens) for step in group.steps]
['repeat A B', 'echo *1']
>>> from tasks.pcfg.rules import apply
>>> replay([group], lambda sources: [apply(source) for source in sources])
[('A', 'B', 'A', 'B', 'B')]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.base.data_files import DataDamaged

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One function with its arguments."""

    tokens: Tokens

    def filled(self, values: Sequence[Tokens]) -> Tokens:
        """Return the source with the answers of the steps before it put in, ``*1`` first."""
        filled: list[str] = []
        for token in self.tokens:
            filled += values[int(token[1:]) - 1] if token.startswith("*") else (token,)
        return tuple(filled)


@dataclass(frozen=True)
class Group:
    """A source and its functions one by one."""

    steps: tuple[Step, ...]
    """Innermost first; the last one's answer is that of the whole."""
    whole: Tokens
    target: Tokens


def read_groups(lines: Iterable[str], name: str) -> list[Group]:
    """Return the groups of an official file.

    Args:
        lines: kind, source and target, separated by tabs.
        name: of the file, for messages.

    Raises:
        DataDamaged: a line that is none of a group.
    """
    groups: list[Group] = []
    steps: list[Step] = []
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        if len(columns) != 3 or columns[0] not in ("unrolled", "original"):
            raise DataDamaged(f"{name}:{number}: {line!r}: expected 'unrolled' or 'original'")
        kind, source, target = columns[0], tuple(columns[1].split()), tuple(columns[2].split())
        if kind == "unrolled":
            steps.append(Step(source))
            continue
        groups.append(Group(tuple(steps), source, target))
        steps = []
    return groups


def replay(
    groups: Sequence[Group], answer: Callable[[list[Tokens]], Sequence[Tokens]]
) -> list[Tokens]:
    """Return what each group's functions give when each gets the answers before it.

    Args:
        groups: of :func:`read_groups`.
        answer: gives a model's answers to sources. It is called once for all first steps, once for
            all second ones, and so on.
    """
    values: list[list[Tokens]] = [[] for _ in groups]
    for depth in range(max((len(group.steps) for group in groups), default=0)):
        at = [number for number, group in enumerate(groups) if len(group.steps) > depth]
        sources = [groups[number].steps[depth].filled(values[number]) for number in at]
        for number, given in zip(at, answer(sources), strict=True):
            values[number].append(tuple(given))
    return [known[-1] for known in values]
