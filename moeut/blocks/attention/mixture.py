"""Mixture of attention: each token chooses experts that make its queries and read its heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from moeut.blocks.attention.base import Attention
from moeut.blocks.attention.options import AttentionOptions
from moeut.blocks.competing import Balance, CompetingRouter
from moeut.blocks.own import Relaxable, of_repeat
from moeut.blocks.positions import NoPosition, PositionOptions
from moeut.blocks.roles import Role, Roles, linear
from moeut.blocks.routing import RouterRecord, Routes, RoutingContext
from moeut.ops import Dispatch, Linear, expert_linear
from moeut.options import require, require_finite, require_positive


@dataclass(frozen=True, kw_only=True)
class MixtureOfAttention(AttentionOptions):
    """Attention whose query and output projections are experts; keys and values are shared.

    ``num_heads`` are the heads of one expert, whose queries all meet the same keys.
    """

    kind: ClassVar[str] = "mixture_of_attention"
    num_experts: int = 8
    """Experts (E)."""
    top_k: int = 2
    """Active experts per token (k)."""
    router_hidden_size: int = 0
    """Hidden units of the router; 0: d_model."""
    balance_loss: float = 0.01
    """Weight of the router's loss."""
    balance: Balance = "mutual_information"
    """What the router's loss makes small: the negative mutual information of tokens and experts, or
    the sum of its two entropies, as the published code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_experts", "top_k")
        ok = self.top_k <= self.num_experts
        require(ok, "top_k", self.top_k, f"must be at most num_experts={self.num_experts}")
        ok, said = self.router_hidden_size >= 0, "must be a whole number of at least 0"
        require(ok, "router_hidden_size", self.router_hidden_size, said)
        require_finite(self, "balance_loss")

    @property
    def query_width(self) -> int:
        """Channels of all queries of a token."""
        return self.top_k * self.width

    def within(self, *, d_model: int, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's.

        Raises:
            OptionError: as any kind, or for what experts of queries do not have.
        """
        options = super().within(d_model=d_model, dropout=dropout)
        said = "the heads of an expert have a key each, so it must be num_heads"
        grouped = options.num_key_heads
        require(grouped == self.num_heads, "num_key_heads", grouped, said)
        require(self.bias == "none", "bias", self.bias, "experts have no bias; expected none")
        return options

    def build(
        self, d_model: int, position: PositionOptions | None = None
    ) -> MixtureOfAttentionHeads:
        """Return the module; ``position`` adds its own parameters, cross-attention has none."""
        return MixtureOfAttentionHeads(self, d_model, position)

    def projection_macs(self, d_model: int) -> tuple[int, int]:
        """Return the work of keys and values, and of queries and output, for one token each."""
        router = CompetingRouter.macs(d_model, self.num_experts, self.router_hidden_size)
        return 2 * d_model * self.width, 2 * d_model * self.query_width + router

    def balance_weights(self) -> dict[str, float]:
        """Return the weight of the router's loss; none if it is 0."""
        return {"output": self.balance_loss} if self.balance_loss else {}


class MixtureOfAttentionHeads(Attention[Any]):
    """Query and output experts of one choice, over shared keys and values (arXiv 2210.05144).

    ``query`` (E, D, H·d) and ``output`` (E, H·d, D); the k choices of a token are queries side by
    side, numbered [head, choice], of which those of one head read its keys.
    """

    routers = ("router",)
    projections = ("key", "value")
    has_dense_query = False

    def __init__(
        self, options: MixtureOfAttention, d_model: int, position: PositionOptions | None = None
    ) -> None:
        Relaxable.__init__(self)
        self.top_k, self.num_experts = options.top_k, options.num_experts
        self.num_heads, self.num_key_heads = self.top_k * options.num_heads, options.num_heads
        self.head_size, self.dropout = options.head_size, options.dropout
        self.d_model, self.width, self.qk_norm = d_model, options.width, options.qk_norm
        query = nn.Parameter(torch.empty(self.num_experts, d_model, self.width))
        self.query = query  # type: ignore[assignment]
        self.output = nn.Parameter(torch.empty(self.num_experts, self.width, d_model))
        self.key = Linear(d_model, self.width, bias=False)
        self.value = Linear(d_model, self.width, bias=False)
        self.router = CompetingRouter(
            d_model,
            self.num_experts,
            hidden_size=options.router_hidden_size,
            top_k=self.top_k,
            balance=options.balance,
        )
        position = position or NoPosition()
        self.relative = position.build_relative(options.num_heads, self.head_size, d_model)
        self._owner: tuple[MixtureOfAttentionHeads, ...] = ()

    def roles(self) -> Roles:
        """Return the role of each parameter; experts are drawn as the dense weight of a head."""
        into = dict.fromkeys(("key.weight", "value.weight"), linear(self.d_model, self.width))
        if self._owner:
            return into
        return into | {
            "query": Role("weight", self.d_model, self.width),
            "output": Role("weight", self.width, self.d_model),
        }

    def expert_weights(self, *, source: bool = True) -> tuple[nn.Parameter, ...]:
        """Return the query and the output experts; the source has none."""
        owner = self._owner[0] if self._owner else self
        return cast(nn.Parameter, owner.query), owner.output

    def borrow_experts(self, owner: Attention[Any]) -> None:
        """Use the experts of another attention in the place of those of its own."""
        del self.query, self.output
        self._owner = (cast(MixtureOfAttentionHeads, owner),)

    def decide_values(self, routed: Tensor, context: RoutingContext) -> tuple[None, None]:
        """Return nothing: all tokens have one projection to values."""
        return None, None

    def decide_outputs(
        self, routed: Tensor, context: RoutingContext
    ) -> tuple[tuple[Dispatch, Routes], RouterRecord | None]:
        """Choose the experts of the query tokens (B, T, D)."""
        routes, record = of_repeat(self.router, context.repeat)(routed, context)
        return (Dispatch.from_indices(routes.selection, self.num_experts), routes), record

    def queries(self, routed: Tensor, decision: Any, context: RoutingContext) -> Tensor:
        """Project to the queries of the chosen experts, (B, T, D) to (B, T, H·k·d)."""
        # Slot s is [row, token, choice]; (B·T, D) -> (B·T·k, H·d).
        dispatch, _ = decision
        weight = context.weights[self.expert_weights()[0]]
        query = expert_linear(routed.flatten(0, 1), weight, dispatch, slots_per_input=self.top_k)
        query = query.view(*routed.shape[:2], self.top_k, self.num_key_heads, self.head_size)
        return query.transpose(2, 3).flatten(2)

    def values(self, plain: Tensor, decision: None, context: RoutingContext) -> Tensor:
        """Project the plain view (B, K, D) to values (B, H, K, d)."""
        return self._split_heads(self.project("value", plain, context.repeat), self.num_key_heads)

    def outputs(self, attended: Tensor, decision: Any, context: RoutingContext) -> Tensor:
        """Sum what the chosen experts make of their heads: (B, T, H·k, d) to (B, T, D)."""
        dispatch, routes = decision
        batch, length = attended.shape[:2]
        slots = attended.unflatten(2, (self.num_key_heads, self.top_k)).transpose(2, 3)
        output = expert_linear(
            slots.reshape(-1, self.width),  # (B·T·k, H·d)
            context.weights[self.expert_weights()[1]],
            dispatch,
            slots_per_output=self.top_k,
            gate=routes.gates,
        )
        return output.view(batch, length, self.d_model)
