"""The feed-forward of the Universal Transformer that reads neighbours: two convolutions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from moeut.blocks.feed_forward.activations import ACTIVATION, Activation
from moeut.blocks.feed_forward.base import FeedForward, FeedForwardOptions
from moeut.blocks.neighbours import taps
from moeut.blocks.roles import Role, Roles
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import dropout, linear
from moeut.options import derived, require, require_positive, require_probability

Sides = Literal["both", "left"]


@dataclass(frozen=True, kw_only=True)
class ConvolutionalFeedForward(FeedForwardOptions):
    """Two convolutions over neighbouring positions, with an activation between them."""

    kind: ClassVar[str] = "convolutional"
    free_width: ClassVar[str] = "hidden_size"
    hidden_size: int = 512
    """Hidden units (F)."""
    width: int = 3
    """Positions that each convolution reads (k)."""
    sides: Sides = derived()
    """Read as many neighbours on either side, or those before a token alone; left out: ``left``
    where tokens look back alone, else ``both``."""
    activation: Activation = "relu"
    """Function between the convolutions."""
    activate_output: bool = False
    """Apply the function after the second convolution too, as a PyTorch port does."""
    bias: bool = True
    """Biases in both convolutions."""
    dropout: float = derived()
    """Dropout on the hidden activations; left out: the model's ``dropout``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size", "width")
        require_probability(self, "dropout")
        said = "must be odd to reach as far on either side; expected sides: left"
        require(self.sides != "both" or self.width % 2 == 1, "width", self.width, said)

    def within(self, *, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        own: float | None = self.dropout
        return dataclasses.replace(self, dropout=dropout if own is None else own)

    def in_stack(self, *, causal: bool) -> Self:
        """Return the options of a stack.

        Raises:
            OptionError: a convolution would read later tokens in a causal stack.
        """
        said = "reads later tokens, which a causal stack must not see; expected left"
        require(not causal or self.sides != "both", "sides", self.sides, said)
        given: Sides | None = self.sides
        follows: Sides = "left" if causal else "both"
        return dataclasses.replace(self, sides=follows if given is None else given)

    def cache_width(self, d_model: int) -> int:
        return d_model + self.hidden_size if self.reads_neighbours else 0

    @property
    def reads_neighbours(self) -> bool:
        """Whether the convolutions read more than the token itself."""
        return self.width > 1

    def build(self, d_model: int) -> ConvolutionalMLP:
        """Return the module."""
        return ConvolutionalMLP(self, d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates for one token."""
        return 2 * self.width * d_model * self.hidden_size


class ConvolutionalMLP(FeedForward):
    """down ∗ activation(up ∗ x), ∗ over positions (tensor2tensor's ``conv_hidden_relu``).

    ``up.weight`` is (F, D, k), ``down.weight`` (D, F, k), their last dimension from left to right.
    """

    projections = ("up", "down")

    def __init__(self, options: ConvolutionalFeedForward, d_model: int) -> None:
        super().__init__()
        self.reads_neighbours = options.reads_neighbours
        first = -(options.width - 1) if options.sides == "left" else -(options.width // 2)
        offsets = range(first, first + options.width)
        self.up = Convolution(d_model, options.hidden_size, offsets, bias=options.bias)
        self.down = Convolution(options.hidden_size, d_model, offsets, bias=options.bias)
        self.activation = ACTIVATION[options.activation]
        self.activate_output = options.activate_output
        self.dropout = options.dropout

    def roles(self) -> Roles:
        """Return the role of each parameter; the fan-in is that of all positions together."""
        roles: Roles = {}
        for name, part in (("up", "up"), ("down", "weight")):
            fan_out, fan_in, width = getattr(self, name).weight.shape
            roles[f"{name}.weight"] = Role(part, fan_in * width, fan_out, is_matrix=False)  # type: ignore[arg-type]
            if getattr(self, name).bias is not None:
                roles[f"{name}.bias"] = Role("bias", fan_in * width, fan_out)
        return roles

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Map the plain view (B, T, D) to (B, T, D); there is no router and no record."""
        hidden = self.activation(self._convolve("up", plain, context))  # (B, T, F)
        if self.dropout and self.training:
            hidden = dropout(hidden, self.dropout)
        output = self._convolve("down", hidden, context)
        return self.activation(output) if self.activate_output else output, None

    def _convolve(self, name: str, x: Tensor, context: RoutingContext) -> Tensor:
        """Apply a convolution to x (B, T, fan_in), with what the repeat changes in it."""
        layer: Convolution = getattr(self, name)
        found = layer.read(x, context, f"feed_forward.{name}")
        result = layer(found)
        if self.adapters is not None and name in self.adapters:
            result = result + self.adapters[name](found, context.repeat)
        return result


class Convolution(nn.Module):
    """A dense layer that reads a token and its neighbours: ``weight`` (fan_out, fan_in, k)."""

    def __init__(self, fan_in: int, fan_out: int, offsets: range, *, bias: bool) -> None:
        super().__init__()
        self.offsets = offsets
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in, len(offsets)))
        self.bias = nn.Parameter(torch.empty(fan_out)) if bias else None

    def read(self, x: Tensor, context: RoutingContext, name: str) -> Tensor:
        """Return what each token of x (B, T, fan_in) reads, (B, T, fan_in · k).

        ``name`` is that of x in a cache.
        """
        return taps(x, self.offsets, context.row, context.own_name(name)).flatten(-2)

    def forward(self, found: Tensor) -> Tensor:
        """Map what tokens read (B, T, fan_in · k) to (B, T, fan_out)."""
        return linear(found, self.weight.flatten(1), self.bias)
