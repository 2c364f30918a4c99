"""The four deterministic context-free tasks: a stack decides them.

>>> reverse_string(np.array([[0, 1, 1]]))[0].tolist()
[[1, 1, 0]]
>>> stack_manipulation(np.array([[0, 1, 2, 4]]))[0].tolist()  # 0 1, pop, push 1
[[1, 0, 2, 0, 0]]
>>> solve_equation(np.array([[7, 9, 5, 3, 8, 10, 3]]))[0].tolist()  # (x+3)=3
[[0]]
"""

from __future__ import annotations

import numpy as np

from tasks.base.draws import Draws
from tasks.chomsky.brackets import draw_expressions, evaluate
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

POP, END = 2, 2
UNKNOWN, EQUALS = 9, 10


def reverse_string(inputs: np.ndarray) -> Outputs:
    """Return the input from its last symbol to its first."""
    return every(inputs[:, ::-1])


def modular_arithmetic_brackets(inputs: np.ndarray) -> Outputs:
    """Return the value modulo 5 of a bracketed expression."""
    return every(evaluate(inputs, opening=8, closing=9))


def stack_manipulation(inputs: np.ndarray) -> Outputs:
    """Return the stack, its top first, after bits are pushed (the content) and actions done.

    Popping an empty stack does nothing. An end follows, and then zeros.
    """
    count, length = inputs.shape
    rows = np.arange(count)
    stack = np.zeros((count, length + 1), dtype=np.int64)
    height = np.zeros(count, dtype=np.int64)
    for place in range(length):
        token = inputs[:, place]
        pops = token == POP
        pushes = rows[~pops]
        pushed = token[pushes]
        stack[pushes, height[pushes]] = np.where(pushed > POP, pushed - 3, pushed)
        height = np.where(pops, np.maximum(height - 1, 0), height + 1)
    places = height[:, None] - 1 - np.arange(length + 1)  # of the symbol that is written there
    outputs = np.where(places >= 0, np.take_along_axis(stack, places.clip(0), axis=1), 0)
    outputs[rows, height] = END
    return up_to_end(outputs, END)


def draw_stack(draws: Draws, length: int) -> np.ndarray:
    """Return a content of 1 to ``length`` bits, and actions in the rest."""
    content = 1 + draws.integers(length)
    actions = POP + draws.integers(3, length)
    return np.where(np.arange(length) < content[:, None], draws.integers(2, length), actions)


def solve_equation(inputs: np.ndarray) -> Outputs:
    """Return the digit x for which an expression has the value that follows it."""
    if inputs.shape[1] < 3:
        return every(np.zeros(len(inputs), dtype=np.int64))
    expression, value = inputs[:, :-2], inputs[:, -1]
    filled = [np.where(expression == UNKNOWN, x, expression) for x in (0, 1)]
    at_zero, at_one = evaluate(np.concatenate(filled), opening=7, closing=8).reshape(2, -1)
    # Without products the value is a + b·x, b one or minus one.
    return every((at_one - at_zero) * (value - at_zero) % MODULUS)


def draw_equation(draws: Draws, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an expression with one digit hidden, the first one at or after a random place."""
    count = len(draws)
    if length < 3:
        return np.zeros((count, length), dtype=np.int64), np.zeros(count, dtype=np.int64)
    size, rows = length - 2, np.arange(count)
    tokens, value = draw_expressions(draws, size, num_operators=2, opening=7, closing=8)
    distance = (np.arange(size) - draws.integers(size)[:, None]) % size  # from the place, around
    hidden = np.where(tokens < MODULUS, distance, size).argmin(axis=1)
    digit = tokens[rows, hidden]
    tokens[rows, hidden] = UNKNOWN
    ends = np.stack([np.full(count, EQUALS), value], axis=1)
    return np.concatenate([tokens, ends], axis=1), digit


def draw_brackets(draws: Draws, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bracketed expressions of + - * with their values."""
    return draw_expressions(draws, length, num_operators=3, opening=8, closing=9)


CONTEXT_FREE: dict[str, Language] = {
    "modular_arithmetic_brackets": Language(
        level="context-free",
        symbols=(*DIGITS, "+", "-", "*", "(", ")", "unused"),
        labels=DIGITS,
        draw=lambda draws, length: draw_brackets(draws, length)[0],
        draw_solved=draw_brackets,
        solve=modular_arithmetic_brackets,
    ),
    "reverse_string": Language(
        level="context-free", symbols=BITS, labels=BITS, draw=random_bits, solve=reverse_string
    ),
    "stack_manipulation": Language(
        level="context-free",
        symbols=(*BITS, "pop", "push0", "push1"),
        labels=(*BITS, "end"),
        draw=draw_stack,
        solve=stack_manipulation,
    ),
    "solve_equation": Language(
        level="context-free",
        symbols=(*DIGITS, "+", "-", "(", ")", "x", "="),
        labels=DIGITS,
        draw=lambda draws, length: draw_equation(draws, length)[0],
        draw_solved=draw_equation,
        solve=solve_equation,
    ),
}
