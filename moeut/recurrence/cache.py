"""Key/value cache: decode token by token without reading earlier tokens again.

A column of the stored keys and values *is* a position: the token at position p of a row lies in
column p. So rows of different length live in one tensor, right padding of a prompt lies behind the
row's end, where no query looks, and is overwritten by what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from moeut.blocks.attention import Source
from moeut.recurrence.schedule import Place

_MIN_CAPACITY = 16


class Window(NamedTuple):
    """Where the tokens of one forward pass stand."""

    positions: Tensor
    """(T,) if all rows agree, else (B, T)."""

    offset: int | None
    """Position of the first token if all rows agree."""

    num_keys: int
    """Columns that these tokens may look at."""


def whole_sequence(num_tokens: int, device: torch.device) -> Window:
    """Return the window of a pass without a cache."""
    return Window(torch.arange(num_tokens, device=device), 0, num_tokens)


class SharedSlots(NamedTuple):
    """How the applications of the repeated group share places of a cache, to save memory.

    Application a of the repeats, from 0, stores in place a mod ``size``, or in a div ``size`` in
    ``runs``, as the cache of seal-rg/recurrent-pretraining at 59e0b69 can be told to. That is
    another function than the whole pass: a token then sees what was stored last in a place.
    """

    size: int
    """Places that the repeats take turns in; or, in runs, applications that share a place."""

    in_runs: bool = False
    """Whether ``size`` applications in a row share a place."""

    def slots(self, places: Sequence[Place]) -> list[int]:
        """Return the place of each application; prelude and coda have their own."""
        if self.size < 1:
            raise ValueError(f"shared.size={self.size}: must be at least 1")
        first = next(place.application for place in places if place.repeat is not None)
        found: list[int] = []
        for place in places:
            index = place.application - first
            if place.repeat is None:
                found.append(place.application)
            else:
                found.append(first + (index // self.size if self.in_runs else index % self.size))
        return found


class StackCache:
    """Keys and values of a stack, for a fixed depth.

    Self-attention is stored for each application, cross-attention once for each distinct
    layer, or repeat if repeats have their own.
    Applications may share a place: the later one then overwrites what the earlier one stored, so
    that later tokens see what earlier tokens stored there last.
    Use one cache for one batch of sequences, and hand it to every forward pass over their next
    tokens. Gradients do not flow into what is stored.
    """

    def __init__(
        self,
        *,
        num_repeats: int,
        num_applications: int,
        group_size: int,
        slots: Sequence[int] | None = None,
    ) -> None:
        """Make an empty cache; ``slots``: where each application stores, if some share a place."""
        self.num_repeats = num_repeats
        self._slots = range(num_applications) if slots is None else slots
        self.sources: list[list[Source]] = [[] for _ in range(group_size)]
        self._keys: list[Tensor | None] = [None] * num_applications
        self._values: list[Tensor | None] = [None] * num_applications
        self._others: dict[str, list[Tensor | None]] = {}
        self._active: list[Tensor | None] = [None] * num_applications
        self._lengths: int | Tensor = 0  # a number as long as all rows agree
        self._longest = 0  # at least the longest row
        self._batch: int | None = None
        self._window: Window | None = None
        self._next: tuple[int | Tensor, int] = (0, 0)
        self.token_pass: Any = None
        """What reads one token of each row in one operation (``moeut.token_pass``); None: not asked
        yet; False: nothing does."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been read yet."""
        return self._longest == 0

    @property
    def longest(self) -> int:
        """At least the number of tokens of the longest row."""
        return self._longest

    def lengths(self) -> int | Tensor:
        """Return how many tokens each row has read: (B,), or a number if all rows agree."""
        return self._lengths

    def begin(
        self, real: Tensor | None, batch: int, num_tokens: int, device: torch.device
    ) -> Window:
        """Place ``num_tokens`` new tokens of each row, of which ``real`` (B, T) are no padding."""
        if self._batch not in (None, batch):
            raise ValueError(f"batch of {batch} rows: the cache holds {self._batch}")
        steps = torch.arange(num_tokens, device=device)
        start = self._lengths
        num_keys = self._longest + num_tokens
        if isinstance(start, int):
            window = Window(steps + start, start, num_keys)
        else:
            window = Window(start.unsqueeze(1) + steps, None, num_keys)
        if real is None:
            self._next = start + num_tokens, num_keys
        else:
            ends = start + real.sum(dim=1)
            self._next = ends, _longest(ends, num_keys)
        self._batch, self._window = batch, window
        return window

    def store(self, application: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, H, T, d); return those of all columns up to now."""
        assert self._window is not None
        return (
            _write(self._keys, self._slots[application], key, self._window),
            _write(self._values, self._slots[application], value, self._window),
        )

    def append(self, name: str, new: Tensor) -> Tensor:
        """Write rows of new tokens (B, T, N) under a name; return all columns' (B, K, N)."""
        assert self._window is not None
        stored = self._others.setdefault(name, [None])
        return _write(stored, 0, new.unsqueeze(1), self._window).squeeze(1)

    def buffers(self, heads: int, size: int, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return keys and values of every application, (B, H, C, d), with room for new tokens.

        Who asks writes those of the pass that ``begin`` has placed, in the columns of its window.
        """
        assert self._window is not None
        assert self._batch is not None
        num_keys, sizes = self._window.num_keys, (self._batch, heads, size)

        def with_room(stored: list[Tensor | None]) -> list[Tensor]:
            for slot in set(self._slots):
                stored[slot] = _with_room(stored[slot], num_keys, sizes, like)
            return [cast(Tensor, stored[slot]) for slot in self._slots]

        return with_room(self._keys), with_room(self._values)

    def load(self, application: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all columns that an application has stored up to now."""
        assert self._window is not None
        key, value = self._keys[application], self._values[application]
        assert key is not None
        assert value is not None
        return key[:, :, : self._window.num_keys], value[:, :, : self._window.num_keys]

    def take_part(self, application: int, active: Tensor) -> Tensor:
        """Note which new tokens take part, ``active`` (B, T); return it of all columns (B, K).

        An application in which tokens that do not are hidden has to say it in every pass.
        """
        assert self._window is not None
        new = active[:, None, :, None]
        return _write(self._active, application, new, self._window)[:, 0, :, 0]

    def finish(self) -> None:
        """Count the tokens of the pass that ``begin`` started as read."""
        self._lengths, self._longest = self._next
        self._window = None

    def select(self, rows: Tensor) -> StackCache:
        """Return a cache with only the given rows, (N,) int64."""
        chosen = StackCache(
            num_repeats=self.num_repeats,
            num_applications=len(self._keys),
            group_size=len(self.sources),
            slots=self._slots,
        )
        chosen._keys = [_select(tensor, rows) for tensor in self._keys]
        chosen._values = [_select(tensor, rows) for tensor in self._values]
        chosen._others = {
            name: [_select(tensor, rows) for tensor in stored]
            for name, stored in self._others.items()
        }
        chosen._active = [_select(tensor, rows) for tensor in self._active]
        chosen.sources = [[one.select(rows) for one in of_layer] for of_layer in self.sources]
        chosen._lengths, chosen._longest = self._lengths, self._longest
        if not isinstance(self._lengths, int):
            chosen._lengths = self._lengths[rows]
            # Who leaves rows out has just waited for the device, so that looking costs little.
            chosen._longest = int(chosen._lengths.max()) if rows.shape[0] else 0
        chosen._batch = rows.shape[0]
        chosen.token_pass = self.token_pass
        return chosen


def _write(stored: list[Tensor | None], application: int, new: Tensor, window: Window) -> Tensor:
    new = new.detach()
    batch, heads, _, size = new.shape
    buffer = _with_room(stored[application], window.num_keys, (batch, heads, size), new)
    stored[application] = buffer
    if window.offset is not None:
        buffer[:, :, window.offset : window.offset + new.shape[2]] = new
    else:
        rows = torch.arange(new.shape[0], device=new.device).unsqueeze(1)
        buffer[rows, :, window.positions] = new.transpose(1, 2)
    return buffer[:, :, : window.num_keys]


def _with_room(
    buffer: Tensor | None, num_keys: int, sizes: tuple[int, int, int], like: Tensor
) -> Tensor:  # (B, H, at least num_keys, d)
    """Return a buffer for rows, heads and channels of ``sizes``, or a copy if it is too short."""
    capacity = 0 if buffer is None else buffer.shape[2]
    if buffer is not None and capacity >= num_keys:
        return buffer
    batch, heads, size = sizes
    # Zeros and not whatever memory held: masked columns count 0, and 0 · NaN is NaN.
    grown = like.new_zeros(batch, heads, max(num_keys, 2 * capacity, _MIN_CAPACITY), size)
    if buffer is not None:
        grown[:, :, :capacity] = buffer
    return grown


def _longest(lengths: Tensor, bound: int) -> int:
    """Return the longest of ``lengths`` (N,) where looking waits for nothing, else the bound."""
    can_look = lengths.device.type == "cpu" and lengths.numel() > 0
    return int(lengths.max()) if can_look else bound


def _select(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows)
