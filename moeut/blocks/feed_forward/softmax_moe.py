"""The experts of the Sparse Universal Transformer: with biases, and gates that sum to 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from moeut.blocks.competing import Balance, CompetingRouter
from moeut.blocks.feed_forward.activations import ACTIVATION, Activation
from moeut.blocks.feed_forward.base import FeedForward, FeedForwardOptions
from moeut.blocks.own import of_repeat
from moeut.blocks.roles import Role, Roles
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import Dispatch, expert_linear
from moeut.options import require, require_finite, require_positive


@dataclass(frozen=True, kw_only=True)
class SoftmaxMoE(FeedForwardOptions):
    """Mixture of experts with biases, whose gates compete in a softmax and sum to 1."""

    kind: ClassVar[str] = "softmax_moe"
    free_width: ClassVar[str] = "num_experts"
    active_width: ClassVar[str | None] = "top_k"
    num_experts: int = 16
    """Experts (E)."""
    expert_size: int = 32
    """Hidden units of an expert (F)."""
    top_k: int = 2
    """Active experts per token (k)."""
    activation: Activation = "relu"
    """Function between an expert's layers."""
    router_hidden_size: int = 0
    """Hidden units of the router; 0: d_model."""
    balance_loss: float = 0.01
    """Weight of the router's loss."""
    balance: Balance = "mutual_information"
    """What the router's loss makes small: the negative mutual information of tokens and experts, or
    the sum of its two entropies, as the published code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_experts", "expert_size", "top_k")
        ok = self.top_k <= self.num_experts
        require(ok, "top_k", self.top_k, f"must be at most num_experts={self.num_experts}")
        ok, said = self.router_hidden_size >= 0, "must be a whole number of at least 0"
        require(ok, "router_hidden_size", self.router_hidden_size, said)
        require_finite(self, "balance_loss")

    @property
    def smallest_width(self) -> int:
        """As many experts as are active."""
        return self.top_k

    def build(self, d_model: int) -> SoftmaxMoEMLP:
        """Return the module."""
        return SoftmaxMoEMLP(self, d_model)

    def has_router(self) -> bool:
        """Return that it has one."""
        return True

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates for one token: active experts, biases and router."""
        router = CompetingRouter.macs(d_model, self.num_experts, self.router_hidden_size)
        biases = d_model * self.num_experts  # those of all experts, as one product
        return 2 * d_model * self.top_k * self.expert_size + biases + router

    def balance_weight(self) -> float:
        """Return the weight of the router's loss; 0 for none."""
        return self.balance_loss


class SoftmaxMoEMLP(FeedForward):
    """y = Σ over the chosen experts e of g_e · (activation(x U_e + a_e) D_e + b_e).

    ``up`` (E, D, F), ``up_bias`` (E, F), ``down`` (E, F, D), ``down_bias`` (E, D).
    """

    routers = ("router",)

    def __init__(self, options: SoftmaxMoE, d_model: int) -> None:
        super().__init__()
        experts, size = options.num_experts, options.expert_size
        self.top_k = options.top_k
        self.activation = ACTIVATION[options.activation]
        self.up = nn.Parameter(torch.empty(experts, d_model, size))
        self.up_bias = nn.Parameter(torch.empty(experts, size))
        self.down = nn.Parameter(torch.empty(experts, size, d_model))
        self.down_bias = nn.Parameter(torch.empty(experts, d_model))
        self.router = CompetingRouter(
            d_model,
            experts,
            hidden_size=options.router_hidden_size,
            top_k=options.top_k,
            balance=options.balance,
        )

    def roles(self) -> Roles:
        """Return the role of each parameter; all experts together are one matrix."""
        experts, d_model, size = self.up.shape
        return {
            "up": Role("up", d_model, experts * size),
            "up_bias": Role("bias", d_model, experts * size),
            "down": Role("weight", experts * size, d_model),
            "down_bias": Role("bias", experts * size, d_model),
        }

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the expert operations multiply by."""
        return self.up, self.down

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Route by the routed view (B, T, D), map the plain view (B, T, D) to (B, T, D)."""
        routes, record = of_repeat(self.router, context.repeat)(routed, context)
        experts = self.up.shape[0]
        dispatch = Dispatch.from_indices(routes.selection, experts)
        # Slot s is [row, token, choice]: B·T·k of them. Where there is none, a gate of 0 takes away
        # what the biases of expert 0 would give.
        chosen = routes.selection.clamp(min=0).flatten(0, 2)  # (B·T, k)
        up, down = context.weights[self.up], context.weights[self.down]
        hidden = expert_linear(plain.flatten(0, 1), up, dispatch, slots_per_input=self.top_k)
        hidden = self.activation(hidden + self.up_bias[chosen.flatten()].to(hidden.dtype))
        mapped = expert_linear(
            hidden, down, dispatch, slots_per_output=self.top_k, gate=routes.gates
        )
        # The gates as (B·T, E), so that biases are one product, without a (B·T, k, D) between.
        gates = routes.gates.flatten(0, 2).to(mapped.dtype)
        spread = gates.new_zeros(gates.shape[0], experts).scatter_add(1, chosen, gates)
        mapped = mapped + spread @ self.down_bias.to(mapped.dtype)
        return mapped.view(plain.shape), record
