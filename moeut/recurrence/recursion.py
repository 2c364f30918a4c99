"""Recursions over states that are passed back and forth: TRM, HRM and URM.

The group of layers is a *network*: it adds up what it reads and then applies its layers. With e the
embedded input, z the states and n ``low_cycles``, one repeat (a *high cycle*) is

====================  ===============================================================
``two_level``         n times  low ← network(low + high + e);  high ← network'(high + low)
``single``            n times  z ← network(z + e);             with ``closes`` z ← network(z)
====================  ===============================================================

``networks: one`` is the Tiny Recursive Model (SamsungSAILMontreal/TinyRecursiveModels at e7b6871),
whose variant ``singlez`` is ``single`` with ``closes``; ``networks: two`` is the Hierarchical
Reasoning Model (sapientinc/HRM at 42410da); ``single`` is URM (UbiquantAI/URM at 41de2c3).
Gradients flow through the last updates alone. The states begin from vectors that are drawn once and
never trained, or from those that the pass before ended with (``moeut.recurrence.carry``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moeut.options import derived, require, require_positive
from moeut.recurrence.schedule import Depth, Place, RecursionOptions, Update


@dataclass(frozen=True, kw_only=True)
class Recursion(RecursionOptions):
    """Base of the recursions."""

    low_cycles: int = 2
    """Updates of the low state in each repeat (L cycles); repeats are H cycles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "low_cycles")

    def places(self, depth: Depth, repeats: int | None = None) -> list[Place]:
        """Return each application of a pass, in order; a repeat is a high cycle."""
        repeats = depth.repeats if repeats is None else repeats
        layers = [
            layer for update in self.cycle() for layer in self.group_of(update.network, depth)
        ]
        last = len(layers) - 1
        return [
            Place(
                application=repeat * len(layers) + index,
                layer=layer,
                repeat=repeat,
                num_repeats=repeats,
                is_first=index == 0,
                is_last=index == last,
            )
            for repeat in range(repeats)
            for index, layer in enumerate(layers)
        ]


@dataclass(frozen=True, kw_only=True)
class TwoLevel(Recursion):
    """A low and a high state (TRM, HRM)."""

    kind: ClassVar[str] = "two_level"
    num_states: ClassVar[int] = 2
    networks: Literal["one", "two"] = "one"
    """One network updates both states (TRM), or each has its own (HRM)."""
    high_group: int = derived()
    """Layers of the network of the high state, with two networks; left out: depth.group."""
    gradient: Literal["last_cycle", "last_updates"] = "last_cycle"
    """Gradients flow through the whole last repeat (TRM), or through the very last update of
    either state (HRM)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "high_group")
        given: int | None = self.high_group
        has_effect = given is None or self.networks == "two"
        require(has_effect, "high_group", given, "has no effect with networks=one")

    def cycle(self) -> list[Update]:
        """Return the updates of one repeat: state 0 is the low one."""
        low = Update(state=0, reads=(1,), injects=True, network=0)
        own = 1 if self.networks == "two" else 0
        high = Update(state=1, reads=(0,), injects=False, network=own)
        return [low] * self.low_cycles + [high]

    def num_with_gradient(self) -> int:
        """Return through how many last updates of a pass gradients flow."""
        return self.low_cycles + 1 if self.gradient == "last_cycle" else 2

    def group_of(self, network: int, depth: Depth) -> range:
        """Return the layers of a network: those of the low state come first."""
        own: int | None = self.high_group
        if network == 0:
            return range(depth.group)
        return range(depth.group, depth.group + (depth.group if own is None else own))

    def num_layers(self, depth: Depth) -> int:
        """Return how many distinct layers there are."""
        return self.group_of(1 if self.networks == "two" else 0, depth).stop


@dataclass(frozen=True, kw_only=True)
class SingleLevel(Recursion):
    """One state (URM, and TRM's variant ``singlez``)."""

    kind: ClassVar[str] = "single"
    closes: bool = False
    """End each repeat with an update that does not read the input (``singlez``)."""

    def cycle(self) -> list[Update]:
        """Return the updates of one repeat."""
        low = Update(state=0, reads=(), injects=True, network=0)
        closing = [low._replace(injects=False)] if self.closes else []
        return [low] * self.low_cycles + closing

    def num_with_gradient(self) -> int:
        """Return through how many last updates of a pass gradients flow: the last repeat's."""
        return self.low_cycles + self.closes
