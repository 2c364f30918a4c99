"""Text of users as one line that can be shown anywhere."""

from __future__ import annotations

import unicodedata

ESCAPED = ("Cc", "Zl", "Zp", "Cs")
"""Categories of characters that break lines, drive terminals or have no place in UTF-8."""


def printable(text: str) -> str:
    r"""Return text on one line: line ends and control characters as ``\n``, ``\t``, ``\x1b``.

    Everything else stays, spaces and letters of any script among it, so two texts that differ are
    still told apart.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ESCAPED
        else character
        for character in text
    )
