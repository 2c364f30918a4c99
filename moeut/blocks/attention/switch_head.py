"""SwitchHead: value and output projections are experts, chosen per head and token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from moeut.blocks import routing
from moeut.blocks.attention.base import Attention, AttentionOptions
from moeut.blocks.dispatching import Decision, Dispatched, decide
from moeut.blocks.own import of_repeat
from moeut.blocks.positions import PositionOptions
from moeut.blocks.roles import Role, Roles, decision
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import expert_linear
from moeut.options import require, require_finite, require_positive, require_probability


@dataclass(frozen=True, kw_only=True)
class SwitchHead(AttentionOptions):
    """Attention whose value and output projections are experts, chosen per head and token."""

    kind: ClassVar[str] = "switch_head"
    num_experts: int = 4
    """Value experts, and as many output experts, of a head (N_A)."""
    top_k: int = 2
    """Active experts per head and token (k)."""
    balance_loss: float = 0.001
    """Weight of the entropy balance loss of both routers (delta)."""
    expert_dropout: float = 0.0
    """Probability that an expert cannot be chosen for a token, in training."""
    renormalise_experts: bool = True
    """Initialise expert weights with equal norm over experts (training code: ``norm_init``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_experts", "top_k")
        ok = self.top_k <= self.num_experts
        require(ok, "top_k", self.top_k, f"must be at most num_experts={self.num_experts}")
        require_finite(self, "balance_loss")
        require_probability(self, "expert_dropout")

    def within(self, *, d_model: int, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's.

        Raises:
            OptionError: as any kind, or for what value and output experts do not have.
        """
        options = super().within(d_model=d_model, dropout=dropout)
        said = "each head has value experts of its own, so it must be num_heads"
        grouped = options.num_key_heads
        require(grouped == self.num_heads, "num_key_heads", grouped, said)
        said = "experts have no bias; expected none or query_key"
        require(self.bias in ("none", "query_key"), "bias", self.bias, said)
        return options

    def build(self, d_model: int, position: PositionOptions | None = None) -> SwitchHeadAttention:
        """Return the module; ``position`` adds its own parameters, cross-attention has none."""
        return SwitchHeadAttention(self, d_model, position)

    def projection_macs(self, d_model: int) -> tuple[int, int]:
        """Return the work of keys and values, and of queries and output, for one token each."""
        routers = self.num_heads * self.num_experts
        side = d_model * (self.width + self.top_k * self.width + routers)
        return side, side

    def balance_weights(self) -> dict[str, float]:
        """Return the weight of the balance loss of both routers; none if it is 0."""
        return dict.fromkeys(("value", "output"), self.balance_loss) if self.balance_loss else {}


class SwitchHeadAttention(Attention[Dispatched]):
    """Value and output projections are experts, chosen per head and token (arXiv 2312.07987).

    ``value`` (H·E, D, d), ``output`` (H·E, d, D) and their routers (H·E, D) are head-major. Values
    are routed by the tokens attended to, outputs by the querying token.
    """

    routers = ("value_router", "output_router")
    projections = ("query", "key")

    def __init__(
        self, options: SwitchHead, d_model: int, position: PositionOptions | None = None
    ) -> None:
        super().__init__(options, d_model, position)
        self.num_experts = options.num_experts
        self.top_k = options.top_k
        self.expert_dropout = options.expert_dropout
        rows = self.num_heads * self.num_experts
        self.value = nn.Parameter(torch.empty(rows, d_model, self.head_size))
        self.output = nn.Parameter(torch.empty(rows, self.head_size, d_model))
        self.value_router = nn.Parameter(torch.empty(rows, d_model))
        self.output_router = nn.Parameter(torch.empty(rows, d_model))
        # In a tuple, so that experts of another are no part of this module.
        self._owner: tuple[SwitchHeadAttention, ...] = ()
        # Over a single expert, equal norms would make every element ±1.
        self._equal_norm = 0 if options.renormalise_experts and rows > 1 else None

    def roles(self) -> Roles:
        """Return the role of each parameter; experts are drawn as the dense weight of a head."""
        router = decision(self.d_model, self.num_heads * self.num_experts)
        roles = super().roles() | {"value_router": router, "output_router": router}
        if not self._owner:
            roles["value"] = Role("weight", self.d_model, self.width, self._equal_norm)
            roles["output"] = Role("weight", self.width, self.d_model, self._equal_norm)
        return roles

    def decide(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Dispatched, RouterRecord | None, Dispatched, RouterRecord | None]:
        """Decide for values and outputs of the same tokens (B, T, D) in one product."""
        weight = torch.cat(
            [
                of_repeat(self.value_router, context.repeat),
                of_repeat(self.output_router, context.repeat),
            ]
        )
        value, output = self._decide(routed, weight, context)
        return *value, *output

    def decide_values(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Dispatched, RouterRecord | None]:
        """Choose value experts for the source tokens (B, K, D)."""
        return self._decide(routed, of_repeat(self.value_router, context.repeat), context)[0]

    def decide_outputs(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[Dispatched, RouterRecord | None]:
        """Choose output experts for the query tokens (B, T, D)."""
        return self._decide(routed, of_repeat(self.output_router, context.repeat), context)[0]

    def expert_weights(self, *, source: bool = True) -> tuple[nn.Parameter, ...]:
        """Return the value and the output experts, or only the latter."""
        owner = self._owner[0] if self._owner else self
        return (owner.value, owner.output) if source else (owner.output,)

    def borrow_experts(self, owner: Attention[Any]) -> None:
        """Use the experts of another attention in the place of those of its own."""
        del self.value, self.output
        self._owner = (cast(SwitchHeadAttention, owner),)

    def values(self, plain: Tensor, decision: Dispatched, context: RoutingContext) -> Tensor:
        """Mix each head's chosen value experts of the plain view (B, K, D): (B, H, K, d)."""
        # Slot s is [row, token, head, choice]. Its input is a token, read by all H·k slots; its
        # output is a token's head, which the k choices are summed into: (B·K, D) -> (B·K·H, d).
        values = expert_linear(
            plain.flatten(0, 1),
            context.weights[self.expert_weights()[0]],
            decision.dispatch,
            slots_per_input=self.num_heads * self.top_k,
            slots_per_output=self.top_k,
            gate=decision.gates,
        )
        batch, length, _ = plain.shape
        return values.view(batch, length, self.num_heads, self.head_size).transpose(1, 2)

    def outputs(self, attended: Tensor, decision: Dispatched, context: RoutingContext) -> Tensor:
        """Mix each head's chosen output experts, and sum over heads: (B, T, H, d) -> (B, T, D)."""
        # The same slots; now the input is a token's head and the output the token, which all H·k
        # slots are summed into: (B·T·H, d) -> (B·T, D).
        outputs = expert_linear(
            attended.reshape(-1, self.head_size),
            context.weights[self.expert_weights()[1]],
            decision.dispatch,
            slots_per_input=self.top_k,
            slots_per_output=self.num_heads * self.top_k,
            gate=decision.gates,
        )
        return outputs.view(*attended.shape[:2], self.d_model)

    def _decide(self, routed: Tensor, weight: Tensor, context: RoutingContext) -> list[Decision]:
        """Decide for tokens (B, T, D) and each stretch of H·E rows of ``weight``.

        Returns the decisions of R routers, one or two, each with its record.
        """
        logits = routing.router_logits(routed, weight)
        logits = logits.unflatten(-1, (-1, self.num_experts))  # (B, T, R·H, E)
        num_routers = logits.shape[2] // self.num_heads
        drop = self.expert_dropout if self.training else 0.0
        return decide(logits, self.top_k, context, num_routers=num_routers, drop=drop)
