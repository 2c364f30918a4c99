"""The string functions of PCFG SET, and the exceptions of its overgeneralisation test.

A source is a function before its arguments, of which two are separated by a comma, and strings of
symbols at the leaves (Hupkes et al. 2020, arXiv 1908.08351):

>>> apply("append swap_first_last F G H , repeat I J".split())
('H', 'G', 'F', 'I', 'J', 'I', 'J')
>>> apply("echo remove_first A B , C D".split())
('C', 'D', 'D')

An exception gives another meaning to two functions, one right behind the other:

>>> apply(exceptional("echo remove_first A B , C D".split()))
('A', 'B', 'C', 'D')
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

Tokens = tuple[str, ...]

UNARY: dict[str, Callable[[Tokens], Tokens]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "shift": lambda x: x[1:] + x[:1],
    "echo": lambda x: x + x[-1:],
    "swap_first_last": lambda x: x if len(x) < 2 else x[-1:] + x[1:-1] + x[:1],
    "repeat": lambda x: x + x,
}
"""Functions of one string."""
BINARY: dict[str, Callable[[Tokens, Tokens], Tokens]] = {
    "append": lambda x, y: x + y,
    "prepend": lambda x, y: y + x,
    "remove_first": lambda x, y: y,
    "remove_second": lambda x, y: x,
}
"""Functions of two strings."""
FUNCTIONS = (*UNARY, *BINARY)
TWIN = "_twin"
"""Ends the second name of a function in the substitutivity test."""
EXCEPTIONS = {
    ("reverse", "echo"): ("copy", "echo"),
    ("prepend", "remove_first"): ("remove_second", "append"),
    ("echo", "remove_first"): ("copy", "append"),
    ("prepend", "reverse"): ("remove_second", "echo"),
}
"""Adjacent functions -> those that they mean in the overgeneralisation test."""
HELD_OUT = (
    ("swap_first_last", "repeat"),
    ("append", "remove_second"),
    ("repeat", "remove_second"),
    ("append", "swap_first_last"),
)
"""Adjacent functions that the training set of the systematicity test has not."""


def function_of(token: str) -> str | None:
    """Return the function that a token names, by either of its names; None for other tokens."""
    name = token.removesuffix(TWIN)
    return name if name in UNARY or name in BINARY else None


def functions(tokens: Sequence[str]) -> int:
    """Return the number of functions in a source."""
    return sum(function_of(token) is not None for token in tokens)


def apply(tokens: Sequence[str]) -> Tokens:
    """Return what a source means.

    Raises:
        ValueError: it is no expression.
    """
    value, end = _expression(tokens, 0)
    if end != len(tokens):
        raise ValueError(f"{' '.join(tokens)!r}: token {end}: expected the end")
    return value


def _expression(tokens: Sequence[str], start: int) -> tuple[Tokens, int]:
    """Return the value of the expression that starts at a token, and where it ends."""
    name = function_of(tokens[start]) if start < len(tokens) else None
    if name in UNARY:
        value, end = _expression(tokens, start + 1)
        return UNARY[name](value), end
    if name in BINARY:
        first, comma = _expression(tokens, start + 1)
        if comma >= len(tokens) or tokens[comma] != ",":
            raise ValueError(f"{' '.join(tokens)!r}: token {comma}: expected a comma")
        second, end = _expression(tokens, comma + 1)
        return BINARY[name](first, second), end
    end = start
    while end < len(tokens) and tokens[end] != "," and function_of(tokens[end]) is None:
        end += 1
    if end == start:
        raise ValueError(f"{' '.join(tokens)!r}: token {start}: expected a function or a string")
    return tuple(tokens[start:end]), end


def has_pair(tokens: Sequence[str], pairs: Sequence[tuple[str, str]]) -> bool:
    """Return whether one of some pairs of functions stands side by side in a source."""
    return any(pair in pairs for pair in itertools.pairwise(tokens))


def exceptional(tokens: Sequence[str]) -> list[str]:
    """Return a source with the functions that its exceptions mean, read from the left."""
    changed = list(tokens)
    place = 0
    while place + 1 < len(changed):
        pair = EXCEPTIONS.get((changed[place], changed[place + 1]))
        if pair is not None:
            changed[place : place + 2] = pair
            place += 1
        place += 1
    return changed
