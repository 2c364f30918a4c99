"""States that are carried from pass to pass, and the head that says when to stop.

A model with ``carry.steps`` above 1 answers after so many passes over the same rows, each of which
begins from the state that the one before ended with. In training one pass is one step: gradients
stop at its beginning, and a row goes on with its state until it halts (deep supervision, as in HRM,
TRM and URM). What halts it reads two numbers off position 0: how sure the model is to be right
already, and what it expects of going on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Roles, constant
from moeut.ops import linear
from moeut.options import Options, require_positive

SURELY_NOT = -5.0
"""First logit of halting and of going on, whatever the state is (TRM, HRM, URM)."""


@dataclass(frozen=True, kw_only=True)
class Carry(Options):
    """Passes that go on from the state of the one before."""

    steps: int = 1
    """Passes that an answer takes, and the most that a row gets in training; 1: nothing is
    carried, and where there is a halting head it learns from that pass."""
    halting: Literal["none", "right", "value"] = "none"
    """What halts a row in training before its last pass: nothing; ``right``: that its answer is
    more likely right than not (TRM, URM); ``value``: that halting is worth more than going on,
    whose value is learned too, from what a further pass says (HRM)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps")

    @property
    def is_supervised(self) -> bool:
        """Whether passes are trained one by one, by deep supervision."""
        return self.steps > 1 or self.halting != "none"


class Carried(NamedTuple):
    """States that a pass begins from."""

    states: list[Tensor]
    """(B, T, D) each: those of a recursion, low before high, or the one of a plain loop."""

    begins: Tensor
    """(B,) True at rows that begin anew, whatever their states are."""

    def state(self, number: int, first: Tensor) -> Tensor:
        """Return a state (B, T, D), where rows that begin anew have ``first`` (…, D)."""
        given = self.states[number]
        return torch.where(self.begins[:, None, None], first, given.to(first.dtype))


class HaltHead(nn.Module):
    """Logits (B, 2) of halting and of going on, of the state at position 0."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, d_model))
        self.bias = nn.Parameter(torch.empty(2))

    def roles(self) -> Roles:
        """Return the role of each parameter."""
        return {"weight": constant(0.0), "bias": constant(SURELY_NOT)}

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits (B, 2) of states (B, T, D)."""
        return linear(states[:, 0], self.weight, self.bias)
