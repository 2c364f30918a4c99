"""Numbers as the text that stands for them, from which they can be told apart."""

from __future__ import annotations


def exact_text(value: float) -> str:
    """Return a number in few characters, none of which is lost: 0.0001, 1e-05, 3, 0.1234567.

    Six digits are shown without trailing zeros; where they are not the number, as many as it takes.
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
