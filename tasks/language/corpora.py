"""Corpora by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks import options
from tasks.language.documents import Corpus
from tasks.language.stdlib import StandardLibrary

CORPORA: dict[str, Callable[[], Corpus]] = {
    "stdlib": StandardLibrary,
}


def open_corpus(name: str, **choices: Any) -> Corpus:
    """Return the corpus of a name; nothing is read yet.

    Raises:
        ValueError: no corpus has that name; the message lists those there are.
    """
    if name not in CORPORA:
        raise ValueError(
            f"task.corpus={name!r}: expected one of {', '.join(CORPORA)}"
            f"{options.nearest(name, CORPORA)}"
        )
    return CORPORA[name]()
