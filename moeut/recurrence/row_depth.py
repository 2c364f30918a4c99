"""A depth of its own for each row, or each token, of a training pass.

All rows of a pass share its repeats: a first part without gradient and a last part with it (see
``Inputs.backprop_repeats``). A row takes part in its own number of either, always the first ones,
and waits through the others with its state as it is. So a pass whose number of repeats is fixed
computes any smaller depth, exactly: a static graph for depths that are drawn anew in every step.

======  =========================================================================================
depth   who waits
======  =========================================================================================
(B,)    a row: it has no part in the repeat, so it costs no expert rows and has no share in a
        balance loss
(B, T)  a token: what it would be is computed, since others read its keys and values of the state
        that it waits with, and then thrown away
======  =========================================================================================

Both are as in sandyresearch/parcae at dee8363, which computes waiting rows as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moeut.recurrence.controller import Run, Step
from moeut.recurrence.schedule import Place


class RowDepth(NamedTuple):
    """How many repeats of a pass each row or token takes part in."""

    first: Tensor
    """(B,) or (B, T) repeats of those without gradient."""

    last: Tensor
    """Of the same shape: repeats of those with gradient."""


class RowDepthRun(Run):
    """One pass in which rows or tokens wait; it stands before all other runs."""

    def __init__(self, depth: RowDepth, shape: torch.Size, without: int) -> None:
        """Take the depth, the shape (B, T) of the tokens and the repeats without gradient."""
        self.by_token = depth.first.dim() == 2
        expected = tuple(shape) if self.by_token else (shape[0],)
        for name, part in depth._asdict().items():
            if tuple(part.shape) != expected or part.dtype.is_floating_point:
                raise ValueError(
                    f"row_depth.{name}: expected whole numbers of shape {expected}, got "
                    f"{part.dtype} of shape {tuple(part.shape)}"
                )
        columns = depth if self.by_token else (part.unsqueeze(1).expand(shape) for part in depth)
        self.first, self.last = columns  # (B, T)
        self.without = without
        self.moves = self.begun = self.start_state = self.first.new_zeros(())

    def before(self, place: Place, step: Step) -> Step:
        """Say which rows take part, and which repeat of its own each of them is in."""
        assert place.repeat is not None
        if place.is_first:
            step = self._begin(place, step)
            self.begun = step.x
            if place.repeat < self.without:
                self.moves = self.first > place.repeat
            else:
                self.moves = self.last > place.repeat - self.without
        number = self.first.clamp(max=place.repeat)
        if place.repeat >= self.without:
            number = self.first + place.repeat - self.without
        if self.by_token:
            return step._replace(number=number)
        return step._replace(number=number, active=self.moves, by_row=True)

    def _begin(self, place: Place, step: Step) -> Step:
        """Hand the first state on to tokens that have waited since, gradient included."""
        if place.repeat == 0:
            self.start_state = step.x
        if place.repeat == self.without > 0:
            has_moved = (self.first > 0).unsqueeze(-1)
            return step._replace(x=torch.where(has_moved, step.x, self.start_state))
        return step

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Take back, where a repeat ends, what tokens that wait would have become."""
        if self.by_token and place.is_last:
            return torch.where(self.moves.unsqueeze(-1), x, self.begun)
        return x
