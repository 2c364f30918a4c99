"""Routers whose experts compete: two layers, a softmax, and gates that sum to 1.

With z the state of a token, of the experts chosen by the largest probabilities,

    p = softmax(W tanh(V z + b)),    gate_e = p_e / (Σ of the chosen + 1e-6)

Source: the Sparse Universal Transformer (arXiv 2310.07096), as RobertCsordas/moeut_training_code
at a0f771a has it. Its loss (``routing.mutual_information_loss``) makes experts differ: the
negative mutual information of tokens and experts,

    loss = weight · (Σ_t m_t H(p_t) - H(Σ_t m_t p_t)),    m_t = keep_t / (Σ keep + 1e-12)

over all tokens of a batch and all repeats of a router, a token that is left with the probability
keep counting that much. The code adds the two entropies instead of taking their difference.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from moeut.blocks.roles import Role, Roles, decision
from moeut.blocks.routing import (
    Mutual,
    RouterRecord,
    Routes,
    RoutingContext,
    entropy_of,
    router_logits,
)
from moeut.ops import Linear

Balance = Literal["mutual_information", "sum_of_entropies"]


class Choice(NamedTuple):
    """What a competing router has decided."""

    routes: Routes
    record: RouterRecord | None


class CompetingRouter(nn.Module):
    """Chooses experts by the softmax of a network with one hidden layer."""

    def __init__(
        self, d_model: int, experts: int, *, hidden_size: int, top_k: int, balance: Balance
    ) -> None:
        super().__init__()
        self.top_k, self.balance = top_k, balance
        self.hidden = Linear(d_model, hidden_size or d_model)
        self.output = Linear(hidden_size or d_model, experts, bias=False)

    def roles(self) -> Roles:
        """Return the role of each parameter."""
        d_model, hidden = self.hidden.in_features, self.hidden.out_features
        return {
            "hidden.weight": decision(d_model, hidden),
            "hidden.bias": Role("bias", d_model, hidden),
            "output.weight": decision(hidden, self.output.out_features),
        }

    @staticmethod
    def macs(d_model: int, experts: int, hidden_size: int) -> int:
        """Return the multiply-accumulates for one token."""
        hidden = hidden_size or d_model
        return hidden * (d_model + experts)

    def forward(self, routed: Tensor, context: RoutingContext) -> Choice:
        """Choose top_k experts for each token of ``routed`` (B, T, D); none at padding."""
        # In at least float32: rounding would choose other experts.
        hidden = router_logits(routed, self.hidden.weight)
        hidden = (hidden + self.hidden.bias.to(hidden.dtype)).tanh()
        logits = router_logits(hidden, self.output.weight)  # (B, T, E)
        probability = logits.softmax(dim=-1)
        best, selection = probability.topk(self.top_k, dim=-1, sorted=False)
        gates = best / (best.sum(dim=-1, keepdim=True) + 1e-6)
        if context.real is not None:
            sits_out = ~context.real.unsqueeze(-1)
            selection = selection.masked_fill(sits_out, -1)
            gates = gates.masked_fill(sits_out, 0.0)
        routes = Routes(selection.unsqueeze(2), gates.unsqueeze(2))  # (B, T, 1, k)
        return Choice(routes, self._record(logits, probability, routes, context))

    def _record(
        self, logits: Tensor, probability: Tensor, routes: Routes, context: RoutingContext
    ) -> RouterRecord | None:
        if not context.balance and not context.trace:
            return None
        mutual = None
        if context.balance:
            share = probability.new_ones(probability.shape[:2])  # (B, T)
            if context.keep is not None:
                share = context.keep.to(probability.dtype)
            if context.real is not None:
                share = share * context.real
            entropy = entropy_of(probability)  # (B, T)
            mutual = Mutual(
                (share.unsqueeze(-1) * probability).sum(dim=1),
                (share * entropy).sum(dim=1),
                share.sum(dim=1),
                self.balance == "sum_of_entropies",
            )
        if not context.trace:
            return RouterRecord(mutual=mutual)
        selection, gates = routes
        return RouterRecord(None, logits.unsqueeze(2), selection, gates, mutual=mutual)
