"""The seven context-sensitive tasks.

Numbers are written least significant bit first, but for the square root. ``odds_first`` does as the
published code does: the second, fourth, … symbol come first, though that code's text says odd
places and means the first, third, ….

>>> odds_first(np.array([[0, 1, 0, 1, 1]]))[0].tolist()
[[1, 1, 0, 0, 1]]
>>> binary_addition(np.array([[0, 1, 1, 2, 0, 1, 1]]))[0].tolist()  # 6 + 6
[[0, 0, 1, 1, 2, 0, 0, 0]]
>>> binary_multiplication(np.array([[0, 1, 1, 2, 0, 1, 1]]))[0].tolist()  # 6 * 6 = 36
[[0, 0, 1, 0, 0, 1, 2]]
>>> compute_sqrt(np.array([[1, 1, 0, 1, 0]]))[0].tolist()  # of 26: 5
[[1, 0, 1]]
>>> missing_duplicate(np.array([[1, 1, 0, 1, 1, 2, 3]]))[0].tolist()
[[0]]
"""

from __future__ import annotations

import math

import numpy as np

from tasks.base.draws import Draws
from tasks.chomsky.language import (
    BITS,
    DIGITS,
    MODULUS,
    Language,
    Outputs,
    every,
    random_bits,
    up_to_end,
)

SIGN, END, HOLE, PADDING = 2, 2, 2, 3

LOW_BITS = 30
"""Bits of a number that are drawn as one, so that it is not 0."""


def duplicate_string(inputs: np.ndarray) -> Outputs:
    """Return the input twice."""
    return every(np.concatenate([inputs, inputs], axis=1))


def missing_duplicate(inputs: np.ndarray) -> Outputs:
    """Return the bit that a hole in a string and its copy hides."""
    count, length = inputs.shape
    if length == 1:
        return every(np.ones(count, dtype=np.int64))
    half = length // 2
    hole = (inputs == HOLE).argmax(axis=1)
    return every(inputs[np.arange(count), (hole + half) % (2 * half)])


def draw_missing_duplicate(draws: Draws, length: int) -> np.ndarray:
    """Return a string and its copy with a hole in one of them; padding where the length is odd."""
    count, half = len(draws), length // 2
    if not half:
        return np.ones((count, 1), dtype=np.int64)
    string = draws.integers(2, half)
    tokens = np.concatenate([string, string], axis=1)
    tokens[np.arange(count), draws.integers(2 * half)] = HOLE
    return np.pad(tokens, ((0, 0), (0, length % 2)), constant_values=PADDING)


def odds_first(inputs: np.ndarray) -> Outputs:
    """Return the second, fourth, … symbol, and then the others."""
    return every(np.concatenate([inputs[:, 1::2], inputs[:, ::2]], axis=1))


def bucket_sort(inputs: np.ndarray) -> Outputs:
    """Return the digits from the smallest to the largest."""
    return every(np.sort(inputs, axis=1))


def compute_sqrt(inputs: np.ndarray) -> Outputs:
    """Return the whole part of the square root, in half as many bits, the highest first."""
    count, length = inputs.shape
    width = -(-length // 2)
    size = -(-width // 8)
    packed = np.packbits(np.pad(inputs, ((0, 0), (-length % 8, 0))).astype(np.uint8), axis=1)
    roots = b"".join(
        math.isqrt(int.from_bytes(row.tobytes(), "big")).to_bytes(size, "big") for row in packed
    )
    bits = np.unpackbits(np.frombuffer(roots, dtype=np.uint8).reshape(count, size), axis=1)
    return every(bits[:, 8 * size - width :].astype(np.int64))


def operands(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both numbers (N, T) of an input, zeros behind; 0 where there is no second one."""
    length = inputs.shape[1]
    places = np.arange(length)
    has_sign = (inputs == SIGN).any(axis=1)
    sign = np.where(has_sign, (inputs == SIGN).argmax(axis=1), length)[:, None]
    left = np.where(places < sign, inputs, 0)
    moved = places + sign + 1
    right = np.where(moved < length, np.take_along_axis(inputs, moved.clip(max=length - 1), 1), 0)
    return left, right


def carried(digits: np.ndarray) -> np.ndarray:
    """Return sums of bits (N, T) as bits, each carry brought to the next place."""
    bits = np.empty_like(digits)
    carry = np.zeros(len(digits), dtype=np.int64)
    for place in range(digits.shape[1]):
        carry = carry + digits[:, place]
        bits[:, place] = carry % 2
        carry //= 2
    return bits


def ended(bits: np.ndarray, width: int, *, zero_has_digit: bool) -> Outputs:
    """Return numbers (N, T) in ``width`` places, an end after the highest one of each."""
    places = np.arange(bits.shape[1])
    size = np.where(bits == 1, places + 1, 0).max(axis=1)
    size = np.maximum(size, 1) if zero_has_digit else size
    outputs = bits[:, :width].copy()
    inside = size < width
    outputs[np.flatnonzero(inside), size[inside]] = END
    return up_to_end(outputs, END)


def binary_addition(inputs: np.ndarray) -> Outputs:
    """Return the sum, an end and zeros, one place more than the input; of 0 one digit stands."""
    left, right = operands(inputs)
    both = np.pad(left + right, ((0, 0), (0, 1)))
    return ended(carried(both), inputs.shape[1] + 1, zero_has_digit=True)


def binary_multiplication(inputs: np.ndarray) -> Outputs:
    """Return the product, an end and zeros, as many places as the input."""
    length = inputs.shape[1]
    left, right = operands(inputs)
    product = np.zeros((len(inputs), 2 * length), dtype=np.int64)
    for place in range(length if right.any() else 0):
        if right[:, place].any():
            product[:, place : place + length] += left * right[:, place, None]
    return ended(carried(product), length, zero_has_digit=length > 1)


def draw_operation(draws: Draws, length: int) -> np.ndarray:
    """Return two numbers above 0 with a sign between them at a random place.

    Up to a length of two there is no room: one number, none of whose bits but the first is set.
    """
    if length <= 2:
        return np.pad(draws.integers(length, 1), ((0, 0), (0, length - 1)))
    split = (1 + draws.integers(length - 2))[:, None]
    bits = draws.integers(2, length)
    places = np.arange(length)
    for start, size in ((np.zeros_like(split), split), (split + 1, length - split - 1)):
        # The low bits are those of a number above 0, so that the whole is not 0.
        low = 1 + draws.integers(2 ** size.clip(max=LOW_BITS) - 1, 1)
        place = places - start
        inside = (place >= 0) & (place < size.clip(max=LOW_BITS))
        bits = np.where(inside, low >> place.clip(0, LOW_BITS) & 1, bits)
    np.put_along_axis(bits, split, SIGN, axis=1)
    return bits


CONTEXT_SENSITIVE: dict[str, Language] = {
    "missing_duplicate_string": Language(
        level="context-sensitive",
        symbols=(*BITS, "hole", "pad"),
        labels=BITS,
        draw=draw_missing_duplicate,
        solve=missing_duplicate,
    ),
    "duplicate_string": Language(
        level="context-sensitive",
        symbols=BITS,
        labels=BITS,
        draw=random_bits,
        solve=duplicate_string,
    ),
    "odds_first": Language(
        level="context-sensitive", symbols=BITS, labels=BITS, draw=random_bits, solve=odds_first
    ),
    "binary_addition": Language(
        level="context-sensitive",
        symbols=(*BITS, "+"),
        labels=(*BITS, "end"),
        draw=draw_operation,
        solve=binary_addition,
    ),
    "binary_multiplication": Language(
        level="context-sensitive",
        symbols=(*BITS, "*"),
        labels=(*BITS, "end"),
        draw=draw_operation,
        solve=binary_multiplication,
    ),
    "compute_sqrt": Language(
        level="context-sensitive", symbols=BITS, labels=BITS, draw=random_bits, solve=compute_sqrt
    ),
    "bucket_sort": Language(
        level="context-sensitive",
        symbols=DIGITS,
        labels=DIGITS,
        draw=lambda draws, length: draws.integers(MODULUS, length),
        solve=bucket_sort,
    ),
}
