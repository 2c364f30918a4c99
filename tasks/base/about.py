"""What the menu says of a task: its family, what is hard about it, and what was published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class About:
    """A task in a few lines."""

    family: str
    """Heading that the menu lists it under."""
    hard: str
    """What is hard about it, in a few words."""
    source: str
    """Where it is from: paper, repository and commit."""
    published: tuple[str, ...] = ()
    """Published numbers, each with its source."""
    fetch: str = ""
    """Command that brings its files; empty: it needs none."""
