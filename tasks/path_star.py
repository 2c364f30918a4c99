"""Path-star graphs: arms of equal length meet in one node; which path leads to the goal?

A row lists the edges in random order, each from the middle outwards, then the middle and the end of
one arm, and asks for the path between them at as many ``_`` as it has nodes after the middle:

>>> task = PathStar(arms=2, train_lengths=(2, 2), test_lengths=[3], nodes=9)
>>> row = task.split("train")[0]
>>> edges = dict(zip(row.source[1:8:2], row.source[0:8:2]))  # each node but the middle has one
>>> goal = row.source[-3]
>>> goal == row.target[-1] and edges[goal] == row.target[-2]
True

Read from left to right, a next-token learner fits every label but the first from the one before,
and is left with a guess among the arms for that one; here all labels are predicted at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import require
from tasks.base.positions import NO_LABEL, Rows


@dataclass(frozen=True, kw_only=True)
class PathStar(LengthTask):
    """The path from the middle of a star to the end of one arm, on longer arms than trained."""

    name: ClassVar[str] = "path_star"
    difficulty_name: ClassVar[str] = "edges of an arm"
    about: ClassVar[About] = About(
        family="recall and hops",
        hard="the first step of the path is known at its end alone: plan, or look back",
        source="arXiv 2403.06963 (path-star graphs); rows are generated here",
        published=("next-token training ends at 1 / arms (paper's abstract: it fails)",),
    )

    arms: int = 2
    """Arms of a star."""
    nodes: int = 60
    """Names of nodes to choose from."""
    train_lengths: tuple[int, int] = (1, 6)
    """Fewest and most edges of an arm in train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [7, 8, 10, 12])
    """Edges of an arm in longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "arms", self.arms >= 2, "at least 2")
        longest = max(self.train_lengths[1], *self.test_lengths, *self.valid_lengths)
        least = self.arms * longest + 1
        require(self, "nodes", self.nodes >= least, f"at least {least}, as the largest star has")

    def symbols(self) -> tuple[str, ...]:
        """Return the nodes, the question mark, and what the path is read at."""
        return (*self.labels(), "?", "_")

    def labels(self) -> tuple[str, ...]:
        """Return the nodes."""
        return tuple(map(str, range(self.nodes)))

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return stars whose arms have ``length`` edges."""
        count, size = len(draws), self.arms * length
        nodes = draws.permutations(self.nodes, size + 1)
        middle = nodes[:, :1]
        arms = nodes[:, 1:].reshape(count, self.arms, length)
        inner = np.concatenate([np.repeat(middle, self.arms, axis=1)[..., None], arms], axis=2)
        edges = np.stack([inner[..., :-1], inner[..., 1:]], axis=3).reshape(count, size, 2)
        order = draws.permutations(size)
        listed = np.take_along_axis(edges, order[..., None], axis=1).reshape(count, 2 * size)
        path = arms[np.arange(count), draws.integers(self.arms)]
        question = np.full((count, 1), self.nodes)
        slots = np.full((count, length), self.nodes + 1)
        source = np.concatenate([listed, question, middle, path[:, -1:], slots], axis=1)
        target = np.full_like(source, NO_LABEL)
        target[:, -length:] = path
        return Rows(source, target)
