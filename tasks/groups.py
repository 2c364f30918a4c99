"""Finite groups as tables of products, numbered as in the published word problems.

S_n are the permutations of n in the order of their images; A_n the even ones in the same order; Z_n
the residues; D_n the rotations and then the reflections of an n-gon; a direct product ``G_x_H``
numbers its pairs with the second one running fastest. A product of permutations does the second
one first: (a · b)[i] = a[b[i]].

>>> table = group_table("S3")
>>> table[1].tolist()  # (0 2 1) times each
[1, 0, 3, 2, 5, 4]
>>> len(group_table("A4_x_Z5"))
60
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

MOST = 720
"""Most elements of a group: the table of products has this squared."""

NAMES = "S_n, A_n, Z_n or D_n with n written out (S5), or two of them joined by _x_ (A4_x_Z5)"


@functools.cache
def group_table(name: str) -> np.ndarray:
    """Return the products (order, order) of a group by the numbers of its elements; 0 is neutral.

    Raises:
        ValueError: no such group, or one that is too large.
    """
    first, joined, rest = name.partition("_x_")
    table = _simple(first)
    if not joined:
        return table
    second = group_table(rest)
    if len(table) * len(second) > MOST:
        raise ValueError(f"at most {MOST} elements")
    one, other = np.divmod(np.arange(len(table) * len(second)), len(second))
    return table[one[:, None], one] * len(second) + second[other[:, None], other]


def _simple(name: str) -> np.ndarray:
    kind, digits = name[:1], name[1:]
    if kind not in ("S", "A", "Z", "D") or not (digits.isascii() and digits.isdigit()):
        raise ValueError(NAMES)
    size = int(digits)
    if not 1 <= size <= MOST or (kind in "SA" and size > 6):
        raise ValueError(f"{NAMES}, of at most {MOST} elements")
    if kind == "Z":
        return np.add.outer(np.arange(size), np.arange(size)) % size
    if kind == "D":
        return _dihedral(size)
    return _permutations(size, even_only=kind == "A")


def _dihedral(size: int) -> np.ndarray:
    """Return the table of rotations r^k (k) and reflections r^k s (size + k)."""
    turn = np.arange(2 * size) % size
    flip = np.arange(2 * size) // size
    sign = 1 - 2 * flip[:, None]  # a reflection before a rotation turns it around
    return (turn[:, None] + sign * turn) % size + size * (flip[:, None] ^ flip)


def _permutations(size: int, *, even_only: bool) -> np.ndarray:
    images = np.array(list(itertools.permutations(range(size))))
    if even_only:
        pairs = list(itertools.combinations(range(size), 2))
        inversions = sum(images[:, i] > images[:, j] for i, j in pairs)
        images = images[np.asarray(inversions) % 2 == 0]
    weights = size ** np.arange(size)[::-1]
    numbers = np.full(size**size, -1, dtype=np.int64)
    numbers[images @ weights] = np.arange(len(images))
    return numbers[images[:, images] @ weights]


def running_products(table: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Return the products of elements (N, T) from the first up to each place, (N, T)."""
    products = np.empty_like(elements)
    state = np.zeros(len(elements), dtype=np.int64)
    for place in range(elements.shape[1]):
        state = table[state, elements[:, place]]
        products[:, place] = state
    return products
