"""Shared by generated tasks: checks of their options, and rows spread equally over groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.base.options import require


def check_range(task: Any, field: str, *, minimum: int, above: str | None = None) -> None:
    """Store the option ``field`` of ``task`` as a pair (first, last), both included.

    Args:
        minimum: smallest first value.
        above: another range option whose last value lies below this one's first, where splits
            must not share a difficulty.

    Raises:
        OptionError: in the wrong order, below ``minimum``, or overlapping.
    """
    value = list(getattr(task, field))
    require(
        task, field, minimum <= value[0] <= value[1], f"[first, last], {minimum} <= first <= last"
    )
    if above is not None:
        below = list(getattr(task, above))
        allowed = f"above task.{above}={below}, so that no difficulty is in both"
        require(task, field, value[0] > below[1], allowed)
    object.__setattr__(task, field, (value[0], value[1]))


def equal_shares(total: int, capacities: Sequence[int]) -> list[int]:
    """Split ``total`` rows over groups as equally as their capacities allow.

    A group that cannot hold an equal share is filled, and the others share the rest.

    Raises:
        ValueError: the groups hold fewer than ``total`` rows together.

    >>> equal_shares(100, [10, 1000, 1000])
    [10, 45, 45]
    """
    if total > sum(capacities):
        raise ValueError(f"{total} rows wanted, and there are {sum(capacities)}")
    shares = [0] * len(capacities)
    left = total
    ascending = sorted(range(len(capacities)), key=lambda group: capacities[group])
    for position, group in enumerate(ascending):
        shares[group] = min(capacities[group], left // (len(ascending) - position))
        left -= shares[group]
    return shares
