"""Abacus embeddings: the digits of a number are told apart by their places in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from moeut.blocks.positions.base import AbsolutePositions, Entry, PositionOptions
from moeut.blocks.roles import Role, Roles
from moeut.ops import backend
from moeut.options import derived, require, require_positive


@dataclass(frozen=True, kw_only=True)
class Abacus(PositionOptions):
    """A learned vector per place in a run of digits, added to the embedding (arXiv 2405.17399).

    The digits of each run are numbered 1, 2, …; all other tokens are 0. In training one random
    offset is added to the numbers of digits of a whole batch, so that all places are learned.
    """

    kind: ClassVar[str] = "abacus"
    max_length: int = 128
    """Digits of the longest number; a longer one is refused."""
    max_offset: int = 99
    """Largest offset in training, drawn anew at each pass, 0 as likely as any."""
    digits: tuple[int, ...] = derived()
    """Tokens that are digits; left out: those of the task's words 0 to 9."""
    source_digits: tuple[int, ...] = derived()
    """Tokens that are digits in the source of an encoder-decoder; left out: as ``digits``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_length")
        ok = self.max_offset >= 0
        require(ok, "max_offset", self.max_offset, "must be a whole number of at least 0")

    def told(self, words: Sequence[str], source_words: Sequence[str] | None) -> Self:
        """Return these options with the digits among the words of the task filled in."""
        options = (
            self if self._knows("digits") else dataclasses.replace(self, digits=_digits(words))
        )
        if source_words is None or self._knows("source_digits"):
            return options
        return dataclasses.replace(options, source_digits=_digits(source_words))

    def check_told(self, has_source: bool) -> None:
        """Raise ``OptionError`` if it is not said which tokens are digits."""
        for name in ("digits", "source_digits")[: 1 + has_source]:
            require(self._knows(name), name, None, "missing; expected the tokens of 0 to 9")

    def of_source(self) -> Self:
        """Return the options of a stack that reads the source of an encoder-decoder."""
        return dataclasses.replace(self, digits=self.source_digits)

    def _knows(self, name: str) -> bool:
        return getattr(self, name) is not None

    def build_absolute(self, d_model: int) -> AbacusPositions:
        """Return the vectors."""
        return AbacusPositions(self, d_model)


class AbacusPositions(AbsolutePositions):
    """One learned vector per number: ``weight`` (1 + max_length + max_offset, D)."""

    def __init__(self, options: Abacus, d_model: int) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(
            torch.empty(1 + options.max_length + options.max_offset, d_model)
        )

    def roles(self) -> Roles:
        """Return the role of the vectors, which start as token embeddings do."""
        rows, d_model = self.weight.shape
        return {"weight": Role("embedding", d_model, rows)}

    def enter(self, x: Tensor, entry: Entry) -> Tensor:
        """Return the embedded tokens x (B, T, D) with the vectors of their numbers.

        Raises:
            ValueError: the tokens themselves were not given, or a number has too many digits.
        """
        if entry.tokens is None:
            raise ValueError("tokens: abacus positions need them, besides their embeddings")
        tokens, columns = entry.tokens, entry.columns
        if entry.store is not None:
            tokens = entry.store.append("tokens", tokens.unsqueeze(-1)).squeeze(-1)  # (B, K)
        numbers = digit_numbers(self._is_digit(tokens), entry.document_numbers)
        if entry.store is not None:
            numbers = numbers.gather(1, columns.expand(entry.tokens.shape))
        self._check(numbers)
        if self.training and self.options.max_offset:
            numbers = torch.where(numbers > 0, numbers + self.draw_offset(x.device), 0)
        # Numbers that are too long and could not be looked at share the last vector.
        return x + nn.functional.embedding(numbers.clamp(max=self.weight.shape[0] - 1), self.weight)

    def draw_offset(self, device: torch.device) -> Tensor:  # ()
        """Draw the offset of a pass, the same for all rows."""
        return torch.randint(self.options.max_offset + 1, (), device=device)

    def _is_digit(self, tokens: Tensor) -> Tensor:
        # Digit by digit: a list of them would have to be copied to the device, which waits for it.
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for digit in self.options.digits or ():
            found |= tokens == digit
        return found

    def _check(self, numbers: Tensor) -> None:
        if not backend.can_look(numbers):
            return
        longest = int(numbers.max()) if numbers.numel() else 0
        if longest > self.options.max_length:
            raise ValueError(
                f"a number of at least {longest} digits: abacus positions end at "
                f"max_length={self.options.max_length}"
            )


def _digits(words: Sequence[str]) -> tuple[int, ...]:
    return tuple(token for token, word in enumerate(words) if word in set("0123456789"))


def digit_numbers(is_digit: Tensor, document_numbers: Tensor | None = None) -> Tensor:  # (B, T)
    """Return 1, 2, … along each run of digits in ``is_digit`` (B, T), and 0 elsewhere.

    A document's first token begins a run anew.
    """
    columns = torch.arange(is_digit.shape[1], device=is_digit.device)
    before = torch.where(is_digit, -1, columns)  # the last column before the run, where it is known
    if document_numbers is not None:
        begins = document_numbers[:, 1:] != document_numbers[:, :-1]
        begins = torch.nn.functional.pad(begins, (1, 0)) & is_digit
        before = torch.where(begins, columns - 1, before)
    return torch.where(is_digit, columns - before.cummax(dim=1).values, 0)
