"""What one of the fifteen tasks is: its symbols, how inputs are drawn, and their outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.base.draws import Draws

BITS = ("0", "1")
DIGITS = ("0", "1", "2", "3", "4")
MODULUS = 5

Outputs = tuple[np.ndarray, np.ndarray]
"""Output numbers (N, M), and (N, M) bool: which of them are scored."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """One task of the suite; numbers of symbols and labels are those of the published code."""

    level: Literal["regular", "context-free", "context-sensitive"]
    symbols: tuple[str, ...]
    labels: tuple[str, ...]
    draw: Callable[[Draws, int], np.ndarray]
    """Inputs (N, T) of a length, which may be shorter than asked for."""
    solve: Callable[[np.ndarray], Outputs]
    """Outputs of inputs (N, T) of one length."""
    draw_solved: Callable[[Draws, int], tuple[np.ndarray, np.ndarray]] | None = None
    """Inputs and their one output (N,), as ``solve`` has it, where drawing finds it sooner."""

    def rows(self, draws: Draws, length: int) -> tuple[np.ndarray, Outputs]:
        """Return inputs of a length with their outputs."""
        if self.draw_solved is not None:
            inputs, output = self.draw_solved(draws, length)
            return inputs, every(output)
        inputs = self.draw(draws, length)
        return inputs, self.solve(inputs)


def every(outputs: np.ndarray) -> Outputs:
    """Return outputs (N,) or (N, M), all of them scored."""
    outputs = outputs if outputs.ndim == 2 else outputs[:, None]
    return outputs, np.ones(outputs.shape, dtype=bool)


def up_to_end(outputs: np.ndarray, end: int) -> Outputs:
    """Return outputs (N, M), scored up to and with the first ``end``."""
    before = (outputs == end).cumsum(axis=1) - (outputs == end)
    return outputs, before == 0


def random_bits(draws: Draws, length: int) -> np.ndarray:
    """Return (N, length) fair bits."""
    return draws.integers(2, length)
