"""What sections of a config share: the mark of fields that are no part of a run's identity, and
checks of fields, which name field, value and what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from tasks.base.options import OptionError

NOT_IDENTITY = {"identity": False}
"""Marks a field that is left out of a run's identity: the seed, which has a directory of its own
below the hash, a name, or what only decides how often and where is logged and saved and over how
many processes a batch is spread. A run may go on with more or fewer, and is then the same within
rounding."""


def refuse(config: Any, name: str, expected: str) -> NoReturn:
    """Raise OptionError for a field's value, with what is expected of it."""
    value = getattr(config, name)
    raise OptionError(name, list(value) if isinstance(value, tuple) else value, expected)


def words(names: Sequence[str]) -> str:
    """Return names as a list in words."""
    return ", ".join(names) or "no options"


def at_least(config: Any, minimum: int, *names: str) -> None:
    """Raise OptionError unless each field is None or finite and not below ``minimum``."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < float("inf"):
            finite = " and finite" if value == float("inf") else ""
            refuse(config, name, f"must be at least {minimum}{finite}")


def check_seed(config: Any, name: str, seed: int, must: str) -> None:
    """Raise OptionError for a seed that torch does not take; ``must`` begins the sentence."""
    if not 0 <= seed < 2**64:
        refuse(config, name, f"{must} be at least 0 and below 2^64")


def above_zero(config: Any, *names: str) -> None:
    """Raise OptionError unless each field is None or finite and above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            refuse(config, name, "must be above 0")


def below_one(config: Any, *names: str) -> None:
    """Raise OptionError unless each field is at least 0 and below 1."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            refuse(config, name, "must be at least 0 and below 1")
