"""Which states of a pass are read out besides its result."""

from __future__ import annotations

from torch import Tensor

from moeut.recurrence.inputs import Inputs
from moeut.recurrence.schedule import Depth


def states_to_read(ended: list[Tensor], inputs: Inputs, depth: Depth) -> list[Tensor]:
    """Return the states (B, T, D) of ``inputs.read_repeats``, of those that repeats ended with.

    Raises:
        ValueError: there is no such repeat, or what reads it out would not be that of its depth.
    """
    if inputs.read_repeats is None:
        return []
    if not depth.has_whole_repeats:
        raise ValueError("read_repeats: depth.order=sequence has no whole repeats to read out")
    if depth.coda and inputs.cache is not None:
        raise ValueError(
            f"read_repeats: a cache has keys of the last repeat alone in the coda "
            f"(depth.coda={depth.coda})"
        )
    for number in inputs.read_repeats:
        if not -len(ended) <= number < len(ended):
            raise ValueError(f"read_repeats={number}: expected one of 0 to {len(ended) - 1}")
    return [ended[number] for number in inputs.read_repeats]
