"""The normal form in which SLOG compares logical forms (arXiv 2310.15040): sort, then number.

>>> normal_form("* girl ( x _ 6 ) ; raisin ( x _ 1 ) AND miss . theme ( x _ 3 , x _ 1 )")
'* girl ( 1 ) ; miss . theme ( 2 , 3 ) AND raisin ( 3 )'

As published (bingzhilee/SLOG 1c55df85): the parts between semicolons are definite nouns, unless
they have an ``AND``, at which they are split into atoms; nouns and atoms are each sorted as text,
and then variables are numbered from 1 in the order in which they appear. The sort sees the old
numbers, so that a form whose variables are all renamed may end elsewhere:

>>> normal_form("cat ( x _ 9 ) AND cat ( x _ 10 ) AND run . agent ( x _ 1 , x _ 9 )")
'cat ( 1 ) AND cat ( 2 ) AND run . agent ( 3 , 2 )'
>>> normal_form("cat ( x _ 8 ) AND cat ( x _ 9 ) AND run . agent ( x _ 1 , x _ 8 )")
'cat ( 1 ) AND cat ( 2 ) AND run . agent ( 3 , 1 )'

Two parts without any ``AND`` keep their order; three or more are sorted together.

The authors' code has a second order of the two steps, number and then sort, which is stricter: the
numbers say in which order the parts stood.

>>> swapped = "raisin ( x _ 1 ) AND girl ( x _ 6 )", "girl ( x _ 6 ) AND raisin ( x _ 1 )"
>>> normal_form(swapped[0]) == normal_form(swapped[1])
True
>>> numbered_first(swapped[0]), numbered_first(swapped[1])
('girl ( 2 ) AND raisin ( 1 )', 'girl ( 1 ) AND raisin ( 2 )')
"""

from __future__ import annotations


def normal_form(form: str) -> str:
    """Return the normal form of a logical form, its tokens separated by blanks."""
    return _renumbered(_ordered(_without_x(form)))


def numbered_first(form: str) -> str:
    """Return the form with its variables numbered as they appear, and its parts sorted then."""
    return _ordered(_renumbered(_without_x(form)))


def _without_x(form: str) -> str:
    return " ".join(token for token in form.split() if token not in ("x", "_"))


def _ordered(text: str) -> str:
    parts = text.split(" ; ")
    if len(parts) < 3 and not any(" AND " in part for part in parts):
        return text
    nouns = sorted(part for part in parts if " AND " not in part)
    atoms = sorted(atom for part in parts if " AND " in part for atom in part.split(" AND "))
    return "".join(f"{noun} ; " for noun in nouns) + " AND ".join(atoms)


def _renumbered(text: str) -> str:
    numbers: dict[str, str] = {}
    return " ".join(
        numbers.setdefault(token, str(len(numbers) + 1)) if token.isdigit() else token
        for token in text.split()
    )
