"""A stack whose repeats pass states back and forth: TRM, HRM and URM."""

from __future__ import annotations

import contextlib
import itertools

import torch
from torch import Tensor

from moeut.blocks.roles import truncated_normal
from moeut.recurrence.controller import Run, Step
from moeut.recurrence.passing import Passing
from moeut.recurrence.schedule import Place, Update
from moeut.recurrence.stack import DepthStack, forget_casts
from moeut.recurrence.stack_config import StackConfig


class RecursiveStack(DepthStack):
    """A stack that applies its layers as ``options.recursion`` says.

    ``initial_low`` and ``initial_high`` (D,) are what the states begin from at every position:
    drawn once, saved, and never trained.
    """

    def __init__(
        self, options: StackConfig, d_model: int, *, causal: bool, cross_attention: bool = False
    ) -> None:
        super().__init__(options, d_model, causal=causal, cross_attention=cross_attention)
        self.names = ("initial_low", "initial_high")[: options.recursion.num_states]
        for name in self.names:
            self.register_buffer(name, torch.empty(d_model))

    def draw(self) -> None:
        """Draw what the states begin from: a normal of deviation 1, cut at two deviations."""
        for name in self.names:
            truncated_normal(getattr(self, name))

    def _repeat(
        self, x: Tensor, places: list[Place], runs: list[Run], passing: Passing, without: int
    ) -> Tensor:
        """Return the last state after all repeats, given the embedded input x (B, T, D)."""
        recursion, depth = self.options.recursion, self.options.depth
        cycle = recursion.cycle()
        updates = cycle * (len(places) // sum(self._size(update) for update in cycle))
        first_with = len(updates) - recursion.num_with_gradient()
        states, rest = self._begin(x, passing), iter(places)
        for number, update in enumerate(updates):
            cut = number < first_with
            if number == first_with > 0:
                forget_casts()
            with torch.no_grad() if cut else contextlib.nullcontext():
                z = states[update.state]
                added = [states[index] for index in update.reads] + ([x] if update.injects else [])
                z = z + sum(added[1:], added[0]) if added else z
                for place in itertools.islice(rest, self._size(update)):
                    z = passing.apply(place, Step(z), without_gradient=cut)
                    passing.keep_traced(z)
                states[update.state] = z
            if passing.keeps_repeats and (number + 1) % len(cycle) == 0:
                passing.repeats.append(states[-1])
        assert next(rest, None) is None
        assert depth.has_whole_repeats
        passing.carried = states
        return states[-1]

    def _size(self, update: Update) -> int:
        return len(self.options.recursion.group_of(update.network, self.options.depth))

    def _begin(self, x: Tensor, passing: Passing) -> list[Tensor]:
        """Return what the states begin from, (B, T, D) each."""
        initial = [getattr(self, name).to(x.dtype) for name in self.names]
        carried = passing.inputs.carried
        if carried is None:
            return [first.expand_as(x) for first in initial]
        return [carried.state(number, first) for number, first in enumerate(initial)]
