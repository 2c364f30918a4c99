"""Text as documents, in parts that a worker reads independently, in a corpus of parts."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DOCUMENT_SEPARATOR = "<STORY_SEP>"
"""Text that the paper's code appends to each document; to its tokenizers it is ordinary text."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text that a model is to see as a whole."""

    text: str
    """The text as it stands; it can always be written as UTF-8 and is never empty."""
    name: str = ""
    """Where it comes from, for messages: a file, with a line or a row where it holds many."""


class Part(abc.ABC):
    """A piece of a corpus that a worker reads independently of the others; it can be pickled."""

    name: str
    """Unique in its corpus, and the same on every machine."""
    split: str | None = None
    """``train``, ``validation`` or ``test`` where upstream fixes it; None: decided by hash."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents in their order, holding no more than one block in memory.

        Raises:
            ValueError: a file is damaged, is not UTF-8 or lacks the field: one line that says
                which and where.
        """


class Corpus(abc.ABC):
    """Documents in a fixed order, cut into parts in a way that no number of workers changes."""

    name: str
    separator: str = DOCUMENT_SEPARATOR
    """Text that the paper's code puts after each document; empty where it puts none."""
    uses_network: bool = False
    """Whether reading a part needs the network."""
    paper_tokenizer_parts: int | None = None
    """Number of training parts, from the first, that the paper's tokenizer is trained on; None: not
    the paper's data."""

    @abc.abstractmethod
    def parts(self) -> list[Part]:
        """Return the parts in their fixed order.

        Raises:
            ValueError: there is nothing to read; the message says what is missing.
        """

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the documents, as JSON: names, sizes and SHA-256, or a revision."""

    def facts(self) -> dict[str, str]:
        """Return further lines for ``python -m tasks.show``: what, and its value."""
        return {}

    def documents(self) -> Iterator[Document]:
        """Yield the documents of every part, in order."""
        for part in self.parts():
            yield from part.documents()


def grouped_by_size(sizes: Sequence[int], limit: int) -> list[range]:
    """Return consecutive runs of items, each closed by the item that brings it to ``limit``."""
    groups, start, total = [], 0, 0
    for number, size in enumerate(sizes):
        total += size
        if total >= limit:
            groups.append(range(start, number + 1))
            start, total = number + 1, 0
    if start < len(sizes):
        groups.append(range(start, len(sizes)))
    return groups
