"""How deep a stack is: which layer is applied when.

A stack has ``prelude`` layers that run once, a ``group`` of layers that runs ``repeats`` times, and
``coda`` layers that run once. Its layers are numbered in that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeut.options import OptionError, Options, require, require_positive

Order = Literal["cycle", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Depth(Options):
    """The schedule of a stack; it applies prelude + group × repeats + coda layers."""

    prelude: int = 0
    """Layers applied once, before the group."""
    group: int
    """Distinct layers that are repeated (G); 1 and no other layers: the Universal Transformer."""
    repeats: int
    """Passes through the group; 1: no layer is shared."""
    coda: int = 0
    """Layers applied once, after the group."""
    order: Order = "cycle"
    """Order of the repeats of a group of layers A and B: ``cycle`` ABAB, ``sequence`` AABB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "group", "repeats")
        for name in ("prelude", "coda"):
            value = getattr(self, name)
            require(value >= 0, name, value, "must be a whole number of at least 0")

    @property
    def num_distinct(self) -> int:
        """Layers that have parameters of their own."""
        return self.prelude + self.group + self.coda

    @property
    def num_applications(self) -> int:
        """Layers applied in a pass of the configured depth (L)."""
        return self.prelude + self.group * self.repeats + self.coda

    @property
    def is_shared(self) -> bool:
        """Whether any layer is applied more than once."""
        return self.repeats > 1

    def schedule(self, num_repeats: int | None = None) -> list[int]:
        """Return the index of the layer of each application, for the configured repeats or others.

        Raises:
            OptionError: ``num_repeats`` is no whole number of at least 1.
        """
        repeats = self.repeats if num_repeats is None else num_repeats
        if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
            raise OptionError("num_repeats", repeats, "must be a whole number of at least 1")
        group = range(self.prelude, self.prelude + self.group)
        if self.order == "cycle":
            repeated = [layer for _ in range(repeats) for layer in group]
        else:
            repeated = [layer for layer in group for _ in range(repeats)]
        coda = range(self.prelude + self.group, self.num_distinct)
        return [*range(self.prelude), *repeated, *coda]
