"""The feed-forward with a gated hidden layer: SwiGLU, GELU-GLU and their like."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor
from torch.nn import functional as F

from moeut.blocks.feed_forward.activations import ACTIVATION, Activation
from moeut.blocks.feed_forward.base import FeedForward, FeedForwardOptions
from moeut.blocks.roles import Role, Roles
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import Linear
from moeut.options import derived, require_positive, require_probability


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
    dropout: float = derived()
    """Dropout on the gated hidden units; left out: the model's ``dropout``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size")
        require_probability(self, "dropout")

    def within(self, *, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        own: float | None = self.dropout
        return dataclasses.replace(self, dropout=dropout if own is None else own)

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
    """

    projections = ("gate", "up", "down")

    def __init__(self, options: GatedFeedForward, d_model: int) -> None:
        super().__init__()
        self.gate = Linear(d_model, options.hidden_size, bias=options.bias)
        self.up = Linear(d_model, options.hidden_size, bias=options.bias)
        self.down = Linear(options.hidden_size, d_model, bias=options.bias)
        self.activation = ACTIVATION[options.activation]
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
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        return self.project("down", hidden, repeat), None
