"""Dense multi-head attention, with a sigmoid gate per head where wanted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from moeut.blocks import routing
from moeut.blocks.attention.base import Attention, AttentionOptions
from moeut.blocks.own import of_repeat
from moeut.blocks.positions import PositionOptions
from moeut.blocks.roles import Roles, constant, decision, linear
from moeut.blocks.routing import RoutingContext
from moeut.ops import Linear
from moeut.options import derived, require_positive


@dataclass(frozen=True, kw_only=True)
class DenseAttention(AttentionOptions):
    """Multi-head attention with dense projections."""

    kind: ClassVar[str] = "dense"
    gates: Literal["none", "value", "output", "value_and_output"] = "none"
    """Sigmoid gate per head: on values, on the output (one-expert case of the MoEUT release), or on
    both (one-expert case of its training code)."""
    value_head_size: int = derived()
    """Channels of a head's values; left out: head_size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "value_head_size")

    @property
    def value_heads(self) -> tuple[int, int]:
        """Heads of values, and the channels of each."""
        return self.num_key_heads, self.value_head_size

    def within(self, *, d_model: int, dropout: float) -> Self:
        """Return these options with what is left out filled in, as other kinds do."""
        found = super().within(d_model=d_model, dropout=dropout)
        given: int | None = self.value_head_size
        size = found.head_size if given is None else given
        return dataclasses.replace(found, value_head_size=size)

    def with_head_size(self, head_size: int) -> Self:
        """Return these options with heads of another size, values included."""
        return dataclasses.replace(self, head_size=head_size, value_head_size=head_size)

    def build(
        self, d_model: int, position: PositionOptions | None = None
    ) -> DenseMultiHeadAttention:
        """Return the module; ``position`` adds its own parameters, cross-attention has none."""
        return DenseMultiHeadAttention(self, d_model, position)

    def projection_macs(self, d_model: int) -> tuple[int, int]:
        """Return the work of keys and values, and of queries and output, for one token each."""
        on_value, on_output = self.gated
        channels = self.head_size + self.value_head_size
        return (
            d_model * self.num_key_heads * (channels + on_value),
            d_model * self.num_heads * (channels + on_output),
        )

    @property
    def gated(self) -> tuple[bool, bool]:
        """Whether values and whether the output have gates."""
        return self.gates in ("value", "value_and_output"), self.gates.endswith("output")


class DenseMultiHeadAttention(Attention[Tensor | None]):
    """Dense value and output projections, optionally with a sigmoid gate per head on either.

    Values have v channels a head, d unless ``value_head_size`` says otherwise. ``value_gate`` is
    (G, D), ``output_gate`` (H, D). They are SwitchHead's routers in the case of one expert per
    head: the MoEUT release keeps the one on the output, its training code both.
    """

    routers = ("value_gate", "output_gate")
    projections = ("query", "key", "value", "output")

    def __init__(
        self, options: DenseAttention, d_model: int, position: PositionOptions | None = None
    ) -> None:
        super().__init__(options, d_model, position)
        self.value_head_size = size = options.value_head_size
        self.value = Linear(d_model, self.num_key_heads * size, bias="value" in options.biased)
        self.output = Linear(self.num_heads * size, d_model, bias="output" in options.biased)
        self.value_gate = self.output_gate = None
        on_value, on_output = options.gated
        if on_value:
            self.value_gate = nn.Parameter(torch.empty(self.num_key_heads, d_model))
        if on_output:
            self.output_gate = nn.Parameter(torch.empty(self.num_heads, d_model))

    def roles(self) -> Roles:
        """Return the role of each parameter."""
        roles = super().roles()
        roles["value.weight"] = linear(*reversed(self.value.weight.shape))
        roles["output.weight"] = linear(*reversed(self.output.weight.shape))
        for name in ("value", "output"):
            if getattr(self, name).bias is not None:
                roles[f"{name}.bias"] = constant(0.0)
            gate = of_repeat(getattr(self, f"{name}_gate"), 0)
            if gate is not None:
                roles[f"{name}_gate"] = decision(self.d_model, gate.shape[0])
        return roles

    def decide_values(self, routed: Tensor, context: RoutingContext) -> tuple[Tensor | None, None]:
        """Return the value gates (B, K, G) of the routed view (B, K, D); None without."""
        return self._gates(routed, self.value_gate, context), None

    def decide_outputs(self, routed: Tensor, context: RoutingContext) -> tuple[Tensor | None, None]:
        """Return the output gates (B, T, H) of the routed view (B, T, D); None without."""
        return self._gates(routed, self.output_gate, context), None

    def values(self, plain: Tensor, decision: Tensor | None, context: RoutingContext) -> Tensor:
        """Project the plain view (B, K, D) and gate each head: (B, G, K, v)."""
        value = self.project("value", plain, context.repeat).unflatten(-1, (self.num_key_heads, -1))
        return self._gated(value, decision).transpose(1, 2)

    def outputs(self, attended: Tensor, decision: Tensor | None, context: RoutingContext) -> Tensor:
        """Gate each head of (B, T, H, v), and merge them: (B, T, D)."""
        return self.project("output", self._gated(attended, decision).flatten(-2), context.repeat)

    @staticmethod
    def _gates(
        routed: Tensor, weight: nn.Parameter | None, context: RoutingContext
    ) -> Tensor | None:  # (B, T, H)
        weight = of_repeat(weight, context.repeat)
        return None if weight is None else routing.router_logits(routed, weight).sigmoid()

    @staticmethod
    def _gated(x: Tensor, gates: Tensor | None) -> Tensor:
        """Multiply heads (B, T, H, v) by their gates (B, T, H), which are float32 or more."""
        return x if gates is None else x * gates.unsqueeze(-1).to(x.dtype)
