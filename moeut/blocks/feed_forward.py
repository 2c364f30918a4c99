"""Feed-forward blocks: dense, and a mixture of small experts (σ-MoE).

Both are called with two views of the tokens, ``routed`` for the router and ``plain`` for the
weights, which differ only with ``peri`` norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut import config
from moeut.blocks import routing
from moeut.blocks.routing import RouterRecord, RoutingContext
from moeut.ops import Dispatch, expert_mlp


class DenseMLP(nn.Module):
    """down(relu(up(x))), the feed-forward block of the Transformer."""

    def __init__(self, options: config.DenseFeedForward, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, options.hidden_size, bias=options.bias)
        self.down = nn.Linear(options.hidden_size, d_model, bias=options.bias)
        self.dropout = options.dropout

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return none: there are no experts."""
        return ()

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Map the plain view (B, T, D); there is no router and no record."""
        hidden = F.relu(self.up(plain))
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        return self.down(hidden), None


class SigmaMoEMLP(nn.Module):
    """σ-MoE (arXiv 2310.10837): y = Σ over the top_k experts e of g_e · relu(x U_e) D_e, no biases.

    ``up`` (E, D, F), ``down`` (E, F, D), ``router`` (E, D); g is the sigmoid of the router's logit
    (or the softmax over all experts), not renormalised.
    """

    def __init__(self, options: config.SigmaMoE, d_model: int) -> None:
        super().__init__()
        self.num_experts = options.num_experts
        self.top_k = options.top_k
        self.router_kind = options.router
        self.expert_dropout = options.expert_dropout
        self.up = nn.Parameter(torch.empty(options.num_experts, d_model, options.expert_size))
        self.down = nn.Parameter(torch.empty(options.num_experts, options.expert_size, d_model))
        self.router = nn.Parameter(torch.empty(options.num_experts, d_model))

    def expert_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights that the expert operations multiply by."""
        return self.up, self.down

    def forward(
        self, routed: Tensor, plain: Tensor, context: RoutingContext
    ) -> tuple[Tensor, RouterRecord | None]:
        """Route by the routed view, map the plain view (B, T, D)."""
        logits = routing.router_logits(routed, self.router).unsqueeze(2)  # (B, T, 1, E)
        routes, record = routing.route(
            logits,
            self.top_k,
            context,
            router=self.router_kind,
            drop=self.expert_dropout if self.training else 0.0,
        )
        dispatch = Dispatch.from_indices(routes.selection, self.num_experts)
        up, down = context.weights[self.up], context.weights[self.down]
        mapped = expert_mlp(plain.flatten(0, 1), up, down, dispatch, gate=routes.gates)
        return mapped.view(plain.shape), record


FEED_FORWARD = {config.DenseFeedForward: DenseMLP, config.SigmaMoE: SigmaMoEMLP}


def build_feed_forward(options: config.FeedForward, d_model: int) -> DenseMLP | SigmaMoEMLP:
    """Return the module of a feed-forward's options."""
    return FEED_FORWARD[type(options)](options, d_model)
