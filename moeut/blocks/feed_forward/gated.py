"""The feed-forward with a gated hidden layer: SwiGLU, GELU-GLU and their like."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from moeut.blocks.feed_forward.activations import ACTIVATION, Activation
from moeut.blocks.feed_forward.base import FeedForward, FeedForwardOptions
from moeut.blocks.neighbours import taps
from moeut.blocks.roles import Role, Roles, constant
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import Linear, dropout
from moeut.options import derived, require, require_positive, require_probability


@dataclass(frozen=True, kw_only=True)
class GatedFeedForward(FeedForwardOptions):
    """Two dense layers, and a third one whose activation gates the hidden units."""

    kind: ClassVar[str] = "gated"
    free_width: ClassVar[str] = "hidden_size"
    hidden_size: int = 344
    """Hidden units (F); two thirds of those of a dense feed-forward have as many parameters."""
    activation: Activation = "silu"
    """Function of the gate: ``silu`` is SwiGLU, ``gelu`` GELU-GLU."""
    bias: bool = False
    """Biases in all layers."""
    short_convolution: int = 0
    """Positions, a token's own the last, that a convolution of each hidden unit reads after the
    gate, with the activation once more behind it (Universal Reasoning Model); 0: there is none."""
    dropout: float = derived()
    """Dropout on the gated hidden units; left out: the model's ``dropout``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size")
        ok = self.short_convolution >= 0
        said = "must be a whole number of at least 0"
        require(ok, "short_convolution", self.short_convolution, said)
        require_probability(self, "dropout")

    def within(self, *, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        own: float | None = self.dropout
        return dataclasses.replace(self, dropout=dropout if own is None else own)

    def cache_width(self, d_model: int) -> int:
        return self.hidden_size if self.reads_neighbours else 0

    @property
    def reads_neighbours(self) -> bool:
        """Whether the convolution reads more than the token itself."""
        return self.short_convolution > 1

    def build(self, d_model: int) -> GatedMLP:
        """Return the module."""
        return GatedMLP(self, d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates for one token."""
        return 3 * d_model * self.hidden_size


class GatedMLP(FeedForward):
    """down(activation(gate(x)) · up(x)) (arXiv 2002.05202).

    ``gate`` and ``up`` are (F, D), ``down`` (D, F). Published code has the first two in one matrix
    of 2·F rows, and does not agree which half is the gate: the first in Huginn, TRM, HRM and URM,
    the second in the recurrent model of arXiv 2405.17399.

    A short convolution makes activation(Σ_i w_i · h_{t-k+1+i} + b) of hidden units h_t, with
    ``convolution.weight`` (F, k) (UbiquantAI/URM at 41de2c3).
    """

    projections = ("gate", "up", "down")

    def __init__(self, options: GatedFeedForward, d_model: int) -> None:
        super().__init__()
        self.gate = Linear(d_model, options.hidden_size, bias=options.bias)
        self.up = Linear(d_model, options.hidden_size, bias=options.bias)
        self.down = Linear(options.hidden_size, d_model, bias=options.bias)
        self.activation = ACTIVATION[options.activation]
        self.convolution = None
        if options.short_convolution:
            self.convolution = ShortConvolution(options.hidden_size, options.short_convolution)
        self.reads_neighbours = options.reads_neighbours
        self.dropout = options.dropout

    def roles(self) -> Roles:
        """Return the role of each parameter; a bias starts by the fan-in of its weight."""
        d_model, hidden = self.up.in_features, self.up.out_features
        roles = {
            "gate.weight": Role("up", d_model, hidden),
            "up.weight": Role("up", d_model, hidden),
            "down.weight": Role("weight", hidden, d_model),
        }
        if self.up.bias is not None:
            roles |= dict.fromkeys(("gate.bias", "up.bias"), Role("bias", d_model, hidden))
            roles["down.bias"] = Role("bias", hidden, d_model)
        return roles

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Map the plain view (B, T, D) to (B, T, D); there is no router and no record."""
        repeat = context.repeat
        gate = self.activation(self.project("gate", plain, repeat))
        hidden = gate * self.project("up", plain, repeat)  # (B, T, F)
        if self.convolution is not None:
            hidden = self.activation(self.convolution(hidden, context))
        if self.dropout and self.training:
            hidden = dropout(hidden, self.dropout)
        return self.project("down", hidden, repeat), None


class ShortConvolution(nn.Module):
    """A convolution of each channel over a token and those before it: ``weight`` (F, k)."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.offsets = range(1 - length, 1)
        self.weight = nn.Parameter(torch.empty(width, length))
        self.bias = nn.Parameter(torch.empty(width))

    def roles(self) -> Roles:
        """Return the roles: a new convolution is a mean of what it reads, on average."""
        length = self.weight.shape[1]
        return {"weight": Role("mix", length, length), "bias": constant(0.0)}

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        """Map x (B, T, F) to (B, T, F)."""
        found = taps(x, self.offsets, context.row, context.own_name("feed_forward.convolution"))
        return (found * self.weight).sum(dim=-1) + self.bias
