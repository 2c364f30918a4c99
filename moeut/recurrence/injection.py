"""How the embedded input enters each repeat.

With e the embedded input after the prelude and s the state, repeat r computes

    s₀ = start(e),    s ← group(inject(s, e))

================  ================================================================================
injection         inject(s, e)
================  ================================================================================
``none``          s
``add``           s + e (arXiv 2409.15647)
``gate``          s · e, channel by channel
``linear``        W [s; e], state first, W of D × 2D (arXiv 2502.05171)
``feed_forward``  a feed-forward of [s; e], state first, back to D
``diagonal``      a · s + b · (B e): b and a = exp(-b · exp(rate)) are numbers of each channel, and
                  a is below 1 whatever is learned, so the state forgets
                  (sandyresearch/parcae at dee8363)
================  ================================================================================

All but ``diagonal`` are options of seal-rg/recurrent-pretraining at 59e0b69.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.feed_forward.activations import ACTIVATION, Activation
from moeut.blocks.roles import Role, Roles, constant
from moeut.ops import linear
from moeut.options import Options, require, require_positive


class Rule(nn.Module):
    """Maps state and input (B, T, D) to what the group reads; here the input enters nowhere."""

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return what the group reads (B, T, D), in the dtype of the state."""
        return state


class AddRule(Rule):
    """The input is added to the state."""

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return state + input (B, T, D)."""
        return state + embedded


class GateRule(Rule):
    """The state is multiplied by the input."""

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return state · input (B, T, D)."""
        return state * embedded


class LinearRule(Rule):
    """State and input, side by side, through one projection ``weight`` (D, 2D)."""

    def __init__(self, d_model: int, input_width: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, d_model + input_width))
        self.bias = nn.Parameter(torch.empty(d_model)) if bias else None

    def roles(self) -> Roles:
        """Return the roles of weight and bias."""
        d_model, both = self.weight.shape
        roles = {"weight": Role("mix", both, d_model)}
        return roles if self.bias is None else roles | {"bias": Role("bias", both)}

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return W [state; input] (B, T, D), in the dtype of the state."""
        both = torch.cat((state, embedded), dim=-1)
        # Autocast gives a product in bfloat16; layers would then add up the state itself in that.
        return linear(both, self.weight, self.bias).to(state.dtype)


class FeedForwardRule(Rule):
    """State and input, side by side, through a feed-forward.

    ``up`` is (F, 2D), or (2F, 2D) where the first half gates the second; ``down`` is (D, F).
    """

    def __init__(self, options: FeedForwardInjection, d_model: int, input_width: int) -> None:
        super().__init__()
        hidden, both = options.width(d_model), d_model + input_width
        self.gated, self.activation = options.gated, ACTIVATION[options.activation]
        self.up = nn.Parameter(torch.empty(hidden * (1 + options.gated), both))
        self.down = nn.Parameter(torch.empty(d_model, hidden))
        self.up_bias = nn.Parameter(torch.empty(len(self.up))) if options.bias else None
        self.down_bias = nn.Parameter(torch.empty(d_model)) if options.bias else None

    def roles(self) -> Roles:
        """Return the roles of weights and biases."""
        (rows, both), (d_model, hidden) = self.up.shape, self.down.shape
        roles = {"up": Role("up", both, rows), "down": Role("mix", hidden, d_model)}
        if self.up_bias is not None:
            roles |= {"up_bias": Role("bias", both), "down_bias": Role("bias", hidden)}
        return roles

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return the feed-forward of [state; input] (B, T, D), in the dtype of the state."""
        hidden = linear(torch.cat((state, embedded), dim=-1), self.up, self.up_bias)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(hidden)
        return linear(hidden, self.down, self.down_bias).to(state.dtype)


class DiagonalRule(Rule):
    """A stable linear recurrence of each channel, driven by a projection of the input.

    With b = softplus(``step``) and a = exp(-b · exp(``rate``)), both (D), it is
    a · state + b · (B input), where B is ``weight`` (D, D), which begins as the identity.
    """

    def __init__(self, d_model: int, input_width: int, *, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.rate = nn.Parameter(torch.empty(d_model))
        self.step = nn.Parameter(torch.empty(d_model))
        self.weight = nn.Parameter(torch.empty(d_model, input_width))

    def roles(self) -> Roles:
        """Return the roles: exp(rate) begins as 1, and a as ``decay``."""
        begun = -math.log(self.decay)  # b, of which the inverse of softplus is taken
        return {
            "rate": constant(0.0),
            "step": constant(begun + math.log(-math.expm1(-begun))),
            "weight": Role("identity"),
        }

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return a · state + b · (B input) (B, T, D), in the dtype of the state."""
        step = F.softplus(self.step)
        decay = (-step * self.rate.exp()).exp()
        return state * decay + step * linear(embedded, self.weight).to(state.dtype)


# --- options ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Injection(Options):
    """How the embedded input enters each repeat."""

    widens: ClassVar[bool] = False
    """Whether the state may have another width than the input."""

    def build(self, width: int, input_width: int) -> Rule:
        """Return the module that maps state and input, of these widths, to what the group reads."""
        raise NotImplementedError

    def macs(self, width: int, input_width: int) -> int:
        """Return the multiply-accumulates of one repeat for one token."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NoInjection(Injection):
    """The input enters nowhere but at the start."""

    kind: ClassVar[str] = "none"

    def build(self, width: int, input_width: int) -> Rule:
        """Return the module, which has no parameters."""
        return Rule()


@dataclass(frozen=True, kw_only=True)
class AddInjection(Injection):
    """The input is added to the state before each repeat."""

    kind: ClassVar[str] = "add"

    def build(self, width: int, input_width: int) -> Rule:
        """Return the module, which has no parameters."""
        return AddRule()


@dataclass(frozen=True, kw_only=True)
class GateInjection(Injection):
    """The state is multiplied by the input, channel by channel, before each repeat."""

    kind: ClassVar[str] = "gate"

    def build(self, width: int, input_width: int) -> Rule:
        """Return the module, which has no parameters."""
        return GateRule()


@dataclass(frozen=True, kw_only=True)
class LinearInjection(Injection):
    """State and input go through one projection before each repeat, state first."""

    kind: ClassVar[str] = "linear"
    widens: ClassVar[bool] = True
    bias: bool = False
    """Whether the projection has a bias."""

    def build(self, width: int, input_width: int) -> Rule:
        """Return the module with its projection (D, 2D)."""
        return LinearRule(width, input_width, bias=self.bias)

    def macs(self, width: int, input_width: int) -> int:
        """Return the multiply-accumulates of the projection for one token."""
        return width * (width + input_width)


@dataclass(frozen=True, kw_only=True)
class FeedForwardInjection(Injection):
    """State and input go through a feed-forward before each repeat, state first."""

    kind: ClassVar[str] = "feed_forward"
    widens: ClassVar[bool] = True
    hidden_size: int | None = None
    """Hidden units (F); null: twice the width of the model."""
    activation: Activation = "gelu"
    """What the hidden units, or their gates, go through."""
    gated: bool = False
    """Whether as many units more are multiplied by the activated ones."""
    bias: bool = False
    """Whether both projections have a bias."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size")

    def width(self, d_model: int) -> int:
        """Return the hidden units in a model of width ``d_model``."""
        return 2 * d_model if self.hidden_size is None else self.hidden_size

    def build(self, width: int, input_width: int) -> Rule:
        """Return the module with its projections."""
        return FeedForwardRule(self, width, input_width)

    def macs(self, width: int, input_width: int) -> int:
        """Return the multiply-accumulates of both projections for one token."""
        up = (1 + self.gated) * (width + input_width)
        return self.width(width) * (up + width)


@dataclass(frozen=True, kw_only=True)
class DiagonalInjection(Injection):
    """Each channel of the state decays, and a projection of the input is added."""

    kind: ClassVar[str] = "diagonal"
    widens: ClassVar[bool] = True
    decay: float = math.sqrt(0.2)
    """Share of the state that one repeat keeps at first; 0.447 is that of the published code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.decay < 1.0, "decay", self.decay, "must be above 0 and below 1")

    def build(self, width: int, input_width: int) -> Rule:
        """Return the module with its projection (D, D)."""
        return DiagonalRule(width, input_width, decay=self.decay)

    def macs(self, width: int, input_width: int) -> int:
        """Return the multiply-accumulates of the projection for one token."""
        return width * input_width


INJECTION: Mapping[str, type[Injection]] = {
    "none": NoInjection,
    "add": AddInjection,
    "gate": GateInjection,
    "linear": LinearInjection,
    "feed_forward": FeedForwardInjection,
    "diagonal": DiagonalInjection,
}
