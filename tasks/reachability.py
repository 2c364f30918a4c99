"""Reachability: is there a path between two nodes of a random graph?

A row lists the edges, the smaller node first and sorted, and then asks for two nodes; the label
stands at the second one:

>>> row = Reachability.row(4, [(0, 2), (1, 2), (2, 3)], (1, 3))
>>> print(*row.source, "->", row.target[-1])
0 2 1 2 2 3 ? 1 3 -> yes

Each edge is there with probability ``degree`` / nodes; with 1.7 about half of the pairs are
connected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import require
from tasks.base.positions import NO_LABEL, Rows, tokens_of
from tasks.base.task import Example


def reached(adjacent: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return (N, n) bool: the nodes that paths lead to from ``start`` (N,).

    Args:
        adjacent: (N, n, n) bool, symmetric.
    """
    found = np.arange(adjacent.shape[1]) == start[:, None]
    edges = adjacent.astype(np.float32)
    while True:
        further = found | (np.matmul(found[:, None].astype(np.float32), edges)[:, 0] > 0)
        if (further == found).all():
            return found
        found = further


@dataclass(frozen=True, kw_only=True)
class Reachability(LengthTask):
    """Whether two nodes of a random graph are connected, in larger graphs than trained."""

    name: ClassVar[str] = "reachability"
    difficulty_name: ClassVar[str] = "nodes"
    shortest: ClassVar[int] = 2
    about: ClassVar[About] = About(
        family="recall and hops",
        hard="as many steps as the path is long, or their doubling, log2 of it",
        source="arXiv 2505.19245; kevin671/cot-vs-loop 783fa900",
        published=(
            "setting: 8 to 32 nodes, degree 1.7, a million rows, 2 layers looped 8 times "
            "(repository)",
            "share of connected pairs .54, .49, .46, .44 at 8, 16, 32, 64 nodes (measured)",
        ),
    )

    degree: float = 1.7
    """Mean number of edges at a node, about: an edge has the probability degree / nodes."""
    train_lengths: tuple[int, int] = (4, 16)
    """Fewest and most nodes in train and iid."""
    test_lengths: list[int] = field(default_factory=lambda: [20, 24, 32])
    """Nodes of longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "degree", self.degree > 0, "above 0")

    def symbols(self) -> tuple[str, ...]:
        """Return the nodes, and the question mark."""
        most = max(self.train_lengths[1], *self.test_lengths, *self.valid_lengths)
        return (*map(str, range(most)), "?")

    def labels(self) -> tuple[str, ...]:
        """Return no and yes."""
        return ("no", "yes")

    def source_length(self, length: int) -> int:
        """Return the tokens of a row with every edge; hardly any has so many."""
        return length * (length - 1) + 3

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return graphs of ``length`` nodes with a question about two different ones."""
        first, second = np.triu_indices(length, k=1)
        there = draws.uniform(len(first)) < self.degree / length
        start = draws.integers(length)
        goal = (start + 1 + draws.integers(length - 1)) % length
        return self._rows(length, (first, second), there, np.stack([start, goal], axis=1))

    def _rows(
        self,
        nodes: int,
        pairs: tuple[np.ndarray, np.ndarray],
        there: np.ndarray,
        question: np.ndarray,
    ) -> Rows:
        """Return rows of which edges (P,) of each graph are ``there`` (N, P)."""
        count = len(there)
        adjacent = np.zeros((count, nodes, nodes), dtype=bool)
        adjacent[:, pairs[0], pairs[1]] = there
        adjacent |= adjacent.transpose(0, 2, 1)
        answer = reached(adjacent, question[:, 0])[np.arange(count), question[:, 1]]
        edges = there.sum(axis=1)
        source = np.full((count, 2 * int(edges.max()) + 3), NO_LABEL)
        rows, numbers = np.nonzero(there)
        place = 2 * (np.arange(len(rows)) - np.repeat(edges.cumsum() - edges, edges))
        source[rows, place], source[rows, place + 1] = pairs[0][numbers], pairs[1][numbers]
        end, each = 2 * edges, np.arange(count)
        source[each, end] = len(self.symbols()) - 1
        source[each, end + 1], source[each, end + 2] = question.T
        target = np.full_like(source, NO_LABEL)
        target[each, end + 2] = answer
        return Rows(source, target)

    @staticmethod
    def row(nodes: int, edges: Sequence[tuple[int, int]], question: tuple[int, int]) -> Example:
        """Return the row of one graph."""
        task = Reachability(train_lengths=(nodes, nodes), test_lengths=[nodes + 1])
        first, second = np.triu_indices(nodes, k=1)
        there = np.array([[pair in set(edges) for pair in zip(first, second, strict=True)]])
        made = task._rows(nodes, (first, second), there, np.array([question]))
        return Example(*tokens_of(task, made)[0], difficulty=float(nodes))
