"""σ-MoE: a mixture of small experts with gates that do not compete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from moeut.blocks import routing
from moeut.blocks.dispatching import decide
from moeut.blocks.feed_forward.base import FeedForward, FeedForwardOptions
from moeut.blocks.own import of_repeat
from moeut.blocks.roles import Role, Roles, decision
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import expert_mlp
from moeut.options import require, require_finite, require_positive, require_probability


@dataclass(frozen=True, kw_only=True)
class SigmaMoE(FeedForwardOptions):
    """Mixture of small ReLU experts with non-competitive sigmoid gates (σ-MoE)."""

    kind: ClassVar[str] = "sigma_moe"
    free_width: ClassVar[str] = "num_experts"
    active_width: ClassVar[str | None] = "top_k"
    num_experts: int = 16
    """Experts (N_E)."""
    expert_size: int = 32
    """Hidden units of an expert."""
    top_k: int = 4
    """Active experts per token (K)."""
    router: Literal["sigmoid", "softmax"] = "sigmoid"
    """``softmax``: gates are a softmax over all experts, before the top-k, not renormalised."""
    balance_loss: float = 0.01
    """Weight of the entropy balance loss of the router (gamma)."""
    expert_dropout: float = 0.0
    """Probability that an expert cannot be chosen for a token, in training."""
    renormalise_router: bool = False
    """Initialise all router rows with one norm (the release does, the training code does not)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_experts", "expert_size", "top_k")
        ok = self.top_k <= self.num_experts
        require(ok, "top_k", self.top_k, f"must be at most num_experts={self.num_experts}")
        require_finite(self, "balance_loss")
        require_probability(self, "expert_dropout")

    @property
    def smallest_width(self) -> int:
        """As many experts as are active."""
        return self.top_k

    def build(self, d_model: int) -> SigmaMoEMLP:
        """Return the module."""
        return SigmaMoEMLP(self, d_model)

    def has_router(self) -> bool:
        """Return that it has one."""
        return True

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates for one token: active experts and router."""
        return d_model * (2 * self.top_k * self.expert_size + self.num_experts)

    def balance_weight(self) -> float:
        """Return the weight of the router's balance loss; 0 for none."""
        return self.balance_loss


class SigmaMoEMLP(FeedForward):
    """σ-MoE (arXiv 2310.10837): y = Σ over the top_k experts e of g_e · relu(x U_e) D_e, no biases.

    ``up`` (E, D, F), ``down`` (E, F, D), ``router`` (E, D); g is the sigmoid of the router's logit
    (or the softmax over all experts), not renormalised.
    """

    routers = ("router",)

    def __init__(self, options: SigmaMoE, d_model: int) -> None:
        super().__init__()
        self.num_experts = options.num_experts
        self.top_k = options.top_k
        self.router_kind = options.router
        self.expert_dropout = options.expert_dropout
        self.up = nn.Parameter(torch.empty(options.num_experts, d_model, options.expert_size))
        self.down = nn.Parameter(torch.empty(options.num_experts, options.expert_size, d_model))
        self.router = nn.Parameter(torch.empty(options.num_experts, d_model))
        self._equal_router_norm = 1 if options.renormalise_router else None

    def roles(self) -> Roles:
        """Return the role of each parameter; all experts together are one matrix."""
        experts, d_model, size = self.up.shape
        return {
            "up": Role("up", d_model, experts * size),
            "down": Role("weight", experts * size, d_model),
            "router": decision(d_model, experts)._replace(equal_norm=self._equal_router_norm),
        }

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the expert operations multiply by."""
        return self.up, self.down

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Route by the routed view (B, T, D), map the plain view (B, T, D) to (B, T, D)."""
        logits = routing.router_logits(routed, of_repeat(self.router, context.repeat)).unsqueeze(
            2
        )  # (B, T, 1, E)
        drop = self.expert_dropout if self.training else 0.0
        ((chosen, record),) = decide(
            logits, self.top_k, context, router=self.router_kind, drop=drop
        )
        # Slot s is [row, token, choice]: B·T·K of them, gates (B, T, 1, K) in the same order.
        up, down = context.weights[self.up], context.weights[self.down]
        mapped = expert_mlp(plain.flatten(0, 1), up, down, chosen.dispatch, gate=chosen.gates)
        return mapped.view(plain.shape), record
