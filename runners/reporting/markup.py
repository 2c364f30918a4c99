r"""Text as Markdown and as LaTeX, each character standing for itself.

What a character means there depends on where it stands: ``*`` opens emphasis before a word and not
behind it, ``[`` after ``\\`` is the argument of a line break in LaTeX, ``12.`` begins a list at the
start of a line. What means nothing where it stands stays as it is, so that the text can be read.
"""

from __future__ import annotations

import re
import unicodedata

from tasks.base.printable import printable

# --- Markdown ---------------------------------------------------------------------------

_IN_MARKDOWN = re.compile(
    r"""
      \\ (?= [!-/:-@\[-`{-~] | $ )    # would escape what follows
    | [|`$]                           # ends a cell, begins code or a formula
    | \* (?= \S )                     # opens emphasis
    | (?<! [^\W_] ) _ (?= \S )        # the same, but not within a word
    | ~ (?= ~ )                       # strikes out
    | < (?= [A-Za-z/!?] )             # opens a tag
    | & (?= \#? \w+ ; )               # is a character by name
    | (?<= \] ) [(\[:]                # makes a link of the brackets before it
    """,
    re.VERBOSE,
)
_HEADING_END = re.compile(r"(?=#+$)")


def escape_markdown(text: str) -> str:
    """Return text for a cell of a table, or anywhere but at the start of a line."""
    return _IN_MARKDOWN.sub(r"\\\g<0>", printable(text))


def markdown_line(text: str) -> str:
    """Return text that begins a line or an item of a list."""
    escaped = escape_markdown(text)
    digits = re.match(r"\d{0,9}", escaped).end()  # type: ignore[union-attr]
    is_block = re.match(r"[.)](\s|$)" if digits else r"[-+*#>=]", escaped[digits:])
    return f"{escaped[:digits]}\\{escaped[digits:]}" if is_block else escaped


def markdown_heading(text: str) -> str:
    """Return text of a heading, of which number signs at the end are a part."""
    return _HEADING_END.sub(r"\\", escape_markdown(text), count=1)


# --- LaTeX ------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "°": r"$^{\circ}$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "\u00a0": "~",
    "σ": r"$\sigma$",
    "→": r"$\rightarrow$",
    "↓": r"$\downarrow$",
}
_LIGATURES = re.compile(r"(?<=-)(?=-)|(?<=,)(?=,)|(?<=')(?=')|(?<=[`?!])(?=`)")
"""Where pdflatex makes one sign of two."""
_ACCENTS = {chr(code) for code in (*range(0x300, 0x305), *range(0x306, 0x309), 0x30A, 0x30B, 0x30C)}
_LETTERS = set("ßæÆœŒøØåÅłŁçÇşŞ")
PRELUDE = r"\providecommand{\anychar}[2]{\ifdefined\Umathchar #1\else #2\fi}"
r"""Defines ``\anychar{日}{U+65E5}``: the character, and what pdflatex, which lacks it, prints."""


def escape_latex(text: str) -> str:
    """Return text for any place but the start of a row of a table.

    A character that is in no font of pdflatex is written by ``\\anychar``, of ``PRELUDE``.
    """
    parts = _LIGATURES.split(printable(text))
    return "{}".join("".join(map(_latex_character, part)) for part in parts)


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii() or character in _LETTERS:
        return character
    letters = unicodedata.normalize("NFD", character)
    if len(letters) == 2 and letters[0].isascii() and letters[1] in _ACCENTS:
        return character
    return rf"\anychar{{{character}}}{{U+{ord(character):04X}}}"


def latex_row(cells: list[str]) -> str:
    r"""Return cells that are escaped already as a row of a table.

    A row comes after ``\\`` or ``\midrule``, which take ``[`` or ``*`` for an argument.
    """
    row = " & ".join(cells)
    return (f"{{}}{row}" if row.lstrip().startswith(("[", "*")) else row) + r" \\"


def latex_label(name: str) -> str:
    r"""Return a name as the argument of ``\label``, which takes no signs that mean something."""
    return re.sub(r"[^A-Za-z0-9_.:+-]+", "-", name)
