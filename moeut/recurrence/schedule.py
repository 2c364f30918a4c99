"""How deep a stack is: which layer is applied when.

A stack has ``prelude`` layers that run once, a ``group`` of layers that runs ``repeats`` times, and
``coda`` layers that run once. Its layers are numbered in that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from moeut.options import Kinds, OptionError, Options, require, require_positive

Order = Literal["cycle", "sequence"]


class Place(NamedTuple):
    """Where in its schedule a pass is."""

    application: int
    """Number of the application in the pass, from 0."""

    layer: int
    """Index of the layer in the stack."""

    repeat: int | None
    """Number of the pass through the group, from 0; None in prelude and coda."""

    num_repeats: int
    """Passes through the group in this forward pass."""

    is_first: bool
    """Whether a repeat begins here."""

    is_last: bool
    """Whether a repeat ends here."""


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
    """Order of the repeats of a group of layers A and B: ``cycle`` ABAB, ``sequence`` AABB, which
    takes a group and repeats of at least 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "group", "repeats")
        for name in ("prelude", "coda"):
            value = getattr(self, name)
            require(value >= 0, name, value, "must be a whole number of at least 0")
        for name in ("group", "repeats"):
            value = getattr(self, name)
            said = f"has no effect with {name}={value}; expected cycle"
            require(self.order == "cycle" or value > 1, "order", self.order, said)

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

    @property
    def has_whole_repeats(self) -> bool:
        """Whether a repeat is a pass through the whole group, one after the other."""
        return self.order == "cycle"

    def is_in_group(self, layer: int) -> bool:
        """Return whether the layer of that index is one of those that are repeated."""
        return self.prelude <= layer < self.prelude + self.group

    def ends_recursion(self, layer: int) -> bool:
        """Return whether a recursion ends with the layer: the group's last, or each in AABB."""
        is_last = layer == self.prelude + self.group - 1
        return self.is_in_group(layer) and (is_last or not self.has_whole_repeats)

    def schedule(self, num_repeats: int | None = None) -> list[int]:
        """Return the index of the layer of each application, for the configured repeats or others.

        Raises:
            OptionError: ``num_repeats`` is no whole number of at least 1.
        """
        return [place.layer for place in self.places(num_repeats)]

    def places(self, num_repeats: int | None = None) -> list[Place]:
        """Return each application of a pass, for the configured repeats or others, in order.

        Raises:
            OptionError: ``num_repeats`` is no whole number of at least 1.
        """
        repeats = self.repeats if num_repeats is None else num_repeats
        if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
            raise OptionError("num_repeats", repeats, "must be a whole number of at least 1")
        once = (None, False, False)
        group, last = range(self.group), self.group - 1
        if self.order == "cycle":
            order = [(repeat, index) for repeat in range(repeats) for index in group]
        else:
            order = [(repeat, index) for index in group for repeat in range(repeats)]
        layers: list[tuple[int, tuple[int | None, bool, bool]]]
        layers = [(layer, once) for layer in range(self.prelude)]
        layers += [(self.prelude + i, (repeat, i == 0, i == last)) for repeat, i in order]
        layers += [(layer, once) for layer in range(self.prelude + self.group, self.num_distinct)]
        return [
            Place(application, layer, repeat, repeats, is_first, is_last)
            for application, (layer, (repeat, is_first, is_last)) in enumerate(layers)
        ]


# --- recursions -------------------------------------------------------------------------


class Update(NamedTuple):
    """One update of a state by a network."""

    state: int
    """Number of the state that is replaced; the network reads it too."""

    reads: tuple[int, ...]
    """Numbers of the other states that are added."""

    injects: bool
    """Whether the embedded input is added."""

    network: int
    """Number of the network."""


@dataclass(frozen=True, kw_only=True)
class RecursionOptions(Options):
    """What a repeat is; here one pass through the group."""

    num_states: ClassVar[int] = 1

    def cycle(self) -> list[Update]:
        """Return the updates of one repeat, in order; none where a repeat is a plain one."""
        return []

    def num_with_gradient(self) -> int:
        """Return through how many last updates of a pass gradients flow."""
        return 0

    def group_of(self, network: int, depth: Depth) -> range:
        """Return the layers of a network."""
        return range(depth.group)

    def num_layers(self, depth: Depth) -> int:
        """Return how many distinct layers there are."""
        return depth.num_distinct

    def places(self, depth: Depth, repeats: int | None = None) -> list[Place]:
        """Return each application of a pass, in order."""
        return depth.places(repeats)


@dataclass(frozen=True, kw_only=True)
class NoRecursion(RecursionOptions):
    """A repeat is one pass through the group."""

    kind: ClassVar[str] = "none"


RECURSION: Kinds[RecursionOptions] = Kinds(
    {
        "none": NoRecursion,
        "two_level": "moeut.recurrence.recursion:TwoLevel",
        "single": "moeut.recurrence.recursion:SingleLevel",
    }
)
"""Every kind of ``recursion`` by name, imported when it is taken."""
