"""The dense feed-forward of the Transformer."""

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
from moeut.ops import Linear, dropout, linear, relu_mlp
from moeut.options import derived, require_positive, require_probability


@dataclass(frozen=True, kw_only=True)
class DenseFeedForward(FeedForwardOptions):
    """Two dense layers with an activation between them."""

    kind: ClassVar[str] = "dense"
    free_width: ClassVar[str] = "hidden_size"
    hidden_size: int = 512
    """Hidden units."""
    bias: bool = True
    """Biases in both layers."""
    activation: Activation = "relu"
    """Function between the layers."""
    dropout: float = derived()
    """Dropout on the hidden activations; left out: the model's ``dropout``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size")
        require_probability(self, "dropout")

    def within(self, *, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        own: float | None = self.dropout
        return dataclasses.replace(self, dropout=dropout if own is None else own)

    def build(self, d_model: int) -> DenseMLP:
        """Return the module."""
        return DenseMLP(self, d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates for one token."""
        return 2 * d_model * self.hidden_size


class DenseMLP(FeedForward):
    """down(activation(up(x))), the feed-forward block of the Transformer."""

    projections = ("up", "down")

    def __init__(self, options: DenseFeedForward, d_model: int) -> None:
        super().__init__()
        self.up = Linear(d_model, options.hidden_size, bias=options.bias)
        self.down = Linear(options.hidden_size, d_model, bias=options.bias)
        self.activation = ACTIVATION[options.activation]
        self.dropout = options.dropout

    def roles(self) -> Roles:
        """Return the role of each parameter; a bias starts by the fan-in of its weight."""
        d_model, hidden = self.up.in_features, self.up.out_features
        roles = {
            "up.weight": Role("up", d_model, hidden),
            "down.weight": Role("weight", hidden, d_model),
        }
        if self.up.bias is not None:
            roles["up.bias"] = Role("bias", d_model, hidden)
            roles["down.bias"] = Role("bias", hidden, d_model)
        return roles

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Map the plain view (B, T, D) to (B, T, D); there is no router and no record."""
        drops = self.dropout and self.training
        is_plain = self.activation is F.relu and self.adapters is None
        if is_plain and not drops:
            weights = (self.up.weight, self.up.bias, self.down.weight, self.down.bias)
            return relu_mlp(plain, *weights), None
        if is_plain:
            hidden = linear(plain, self.up.weight, self.up.bias, relu=True)  # (B, T, F)
        else:
            hidden = self.activation(self.project("up", plain, context.repeat))
        if drops:
            hidden = dropout(hidden, self.dropout)
        return self.project("down", hidden, context.repeat), None
