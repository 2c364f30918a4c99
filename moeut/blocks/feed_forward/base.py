"""What every kind of feed-forward has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from moeut.blocks.own import Relaxable
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.options import Options


@dataclass(frozen=True, kw_only=True)
class FeedForwardOptions(Options):
    """Options of every kind of feed-forward."""

    free_width: ClassVar[str]
    """The option that a budget of parameters sizes."""
    active_width: ClassVar[str | None] = None
    """The option that says how much of the width a token uses; None: all of it."""

    @property
    def width(self) -> int:
        """The value of the free width."""
        return getattr(self, self.free_width)

    @property
    def smallest_width(self) -> int:
        """The smallest ``free_width`` that the other options allow."""
        return 1

    def with_width(self, width: int) -> Self:
        """Return these options with ``width`` as their free width."""
        return dataclasses.replace(self, **{self.free_width: width})

    def within(self, *, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        return self

    def in_stack(self, *, causal: bool) -> Self:
        """Return the options of a stack, which may depend on whether tokens look back alone.

        Raises:
            OptionError: a causal stack cannot have it.
        """
        return self

    def build(self, d_model: int) -> FeedForward:
        """Return the module."""
        raise NotImplementedError

    @property
    def reads_neighbours(self) -> bool:
        """Whether tokens beside a token decide what becomes of it."""
        return False

    def cache_width(self, d_model: int) -> int:
        """Return how many numbers of each token a cache holds for one application."""
        return 0

    def has_router(self) -> bool:
        """Return whether the module has a router, which the norm of ``norm: peri`` feeds."""
        return False

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates for one token."""
        raise NotImplementedError

    def balance_weight(self) -> float:
        """Return the weight of the router's balance loss; 0 for none."""
        return 0.0


class FeedForward(Relaxable):
    """A map of each token by itself or with its neighbours, called with two views of it.

    ``routed`` feeds a router, ``plain`` the weights; they differ only with ``peri`` norms.
    """

    reads_neighbours: bool = False
    """Whether tokens beside a token decide what becomes of it, so that none can be left out."""

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the expert operations multiply by; none without experts."""
        return ()

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Map the plain view (B, T, D) to (B, T, D), and return what the router decided.

        ``routed`` (B, T, D) is the view that a router reads.
        """
        raise NotImplementedError
