"""What a run tells whoever started it: typed at both ends, one line of JSON on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

RunEnd = Literal["done", "failed", "refused", "busy", "stopped", "killed"]
"""How a run has left: with its result; for a reason that its directory keeps (``error.json``); for
a config that does not fit; before it began, since another process works on it; or resumable, of
which ``killed`` was not asked for by anybody, as when memory runs out."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far training is."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    """0 where it is not known yet."""


@dataclass(frozen=True, kw_only=True)
class ScoringProgress:
    """How far the scoring of a split is."""

    split: str
    step: int
    steps: int
    rows: int
    of_rows: int


@dataclass(frozen=True)
class Notice:
    """Something that a user should know, such as a damaged checkpoint that was passed over."""

    text: str


@dataclass(frozen=True)
class Ready:
    """A worker has imported what it needs and hears orders; no run's message."""


@dataclass(frozen=True)
class Started:
    """A run was handed to a process that executes it."""


@dataclass(frozen=True)
class Ended:
    """A run has left the process that executed it."""

    status: RunEnd
    reason: str | None = None


Progress = TrainingProgress | ScoringProgress | Notice
"""What a run itself says."""
Message = Progress | Ready | Started | Ended

OnProgress = Callable[[Progress], None]

KINDS: dict[str, type[Any]] = {
    "training": TrainingProgress,
    "scoring": ScoringProgress,
    "notice": Notice,
    "ready": Ready,
    "started": Started,
    "ended": Ended,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


def encode(message: Message) -> bytes:
    """Return a message as one line."""
    content = {"kind": _NAMES[type(message)]} | dataclasses.asdict(message)
    return (json.dumps(content) + "\n").encode()


def decode(line: bytes) -> Message:
    """Return the message of a line.

    Raises:
        ValueError: it is none that ``encode`` makes.
    """
    try:
        content = json.loads(line)
        return KINDS[content.pop("kind")](**content)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"not a message: {line!r}") from None
