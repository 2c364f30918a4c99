"""What a parameter is for, which decides its initial distribution.

A module that owns parameters has a method ``roles`` that returns the role of each by its name
inside the module. ``moeut.initialization`` has the table role × scheme, and nothing else has.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Part = Literal[
    "embedding", "weight", "up", "mix", "identity", "bias", "head", "head_bias", "constant"
]


class Role(NamedTuple):
    """What a parameter does, and between how many units it stands."""

    part: Part
    """``weight`` is any projection, router or gate; ``up`` the first weight of a feed-forward,
    ``mix`` a projection of the state itself and of no branch beside it, ``identity`` such a one
    that begins as the identity matrix."""

    fan_in: int = 0
    """Units that feed a unit on its other side, all experts of a feed-forward counted together."""

    fan_out: int = 0
    """Units that it feeds."""

    equal_norm: int | None = None
    """Dimension along which slices are given one norm after the draw; None: they are left alone."""

    value: float = 0.0
    """What every element of a ``constant`` is."""

    is_matrix: bool = True
    """Of a ``weight`` or ``up`` inside a layer: whether it maps the states of tokens, as one matrix
    or, with three dimensions, as one for each expert along the first. Not what decides, what tells
    distances apart, a kernel of a convolution, or a change of low rank."""


Roles = dict[str, Role]


@runtime_checkable
class HasRoles(Protocol):
    """A module that says what its own parameters are for."""

    def roles(self) -> Roles:
        """Return the role of each parameter by its name inside the module."""


def linear(fan_in: int, fan_out: int) -> Role:
    """Return the role of a projection, router or gate."""
    return Role("weight", fan_in, fan_out)


def decision(fan_in: int, fan_out: int) -> Role:
    """Return the role of a projection to the logits of experts or gates."""
    return Role("weight", fan_in, fan_out, is_matrix=False)


def constant(value: float) -> Role:
    """Return the role of a parameter that starts as ``value`` everywhere."""
    return Role("constant", value=value)


def truncated_normal(parameter: Tensor) -> None:
    """Draw from N(1), and anew what falls outside ±2.

    ``nn.init.trunc_normal_`` draws other numbers in PyTorch 2.11 than in 2.13.
    """
    parameter.normal_()
    while not parameter.is_meta and bool((outside := parameter.abs() > 2.0).any()):
        parameter.copy_(torch.where(outside, torch.empty_like(parameter).normal_(), parameter))
