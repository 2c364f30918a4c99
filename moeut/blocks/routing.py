"""Routing decisions: logits, expert choice, gates, the record of both, and the balance loss.

Shapes: B rows, T tokens, H heads (1 in a feed-forward), E experts, k active experts (top_k).
Nothing here, nor in the modules that use it, keeps state: a routing decision comes back as a
``RouterRecord`` beside the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from moeut.ops.backend import resolve_backend
from moeut.ops.shared import SharedWeights


@dataclass(frozen=True)
class RoutingContext:
    """What every router of one forward pass, and its experts, have to know."""

    real: Tensor | None = None
    """(B, T) True at real tokens; None: all are. Padding gets no expert and no share in a loss."""

    share: Tensor | None = None
    """(B, 1, T) weight of each token in its row's mean; sums to 1, or to 0 without real tokens."""

    balance: bool = False
    """Whether to record what the balance loss needs."""

    trace: bool = False
    """Whether to keep logits, selections, gates and attention weights."""

    weights: SharedWeights = field(default_factory=SharedWeights)
    """The expert weights that this pass uses many times."""

    @classmethod
    def create(
        cls,
        real: Tensor | None,
        *,
        balance: bool,
        trace: bool,
        dtype: torch.dtype,
        weights: SharedWeights | None = None,
    ) -> RoutingContext:
        """Derive the shares from ``real``, in float32, or in float64 for a float64 model."""
        share = None
        if real is not None and balance:
            exact = torch.float64 if dtype == torch.float64 else torch.float32
            share = real.to(exact)
            share = (share / share.sum(dim=1, keepdim=True).clamp_min(1)).unsqueeze(1)
        return cls(real, share, balance, trace, weights or SharedWeights())


@dataclass(frozen=True)
class RouterRecord:
    """What one router decided for the tokens of one forward pass."""

    probability: Tensor | None = None
    """(B, H, E) softmax of the logits, averaged over each row's real tokens (balance loss)."""

    logits: Tensor | None = None
    """(B, T, H, E), traced only, like the two below."""

    selection: Tensor | None = None
    """(B, T, H, k) chosen experts, -1 for none."""

    gates: Tensor | None = None
    """(B, T, H, k) weights of the chosen experts."""

    def select_heads(self, heads: slice) -> RouterRecord:
        """Return the record of some of the heads, where several routers decided in one go."""
        return RouterRecord(
            None if self.probability is None else self.probability[:, heads],
            *(
                None if kept is None else kept[:, :, heads]
                for kept in (self.logits, self.selection, self.gates)
            ),
        )


@dataclass(frozen=True)
class RoutingRecord:
    """What one application of a layer decided.

    The names of routers are ``feed_forward``, and ``value`` and ``output`` under ``attention.`` and
    ``cross_attention.``; the names of attention weights are ``attention`` and ``cross_attention``.
    """

    routers: dict[str, RouterRecord] = field(default_factory=dict)
    attention_weights: dict[str, Tensor] = field(default_factory=dict)
    """(B, H, T, K) each, traced only."""


class Routes(NamedTuple):
    """Chosen experts and their gates, (B, T, H, k) each; -1 is no expert."""

    selection: Tensor
    gates: Tensor


def router_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weightᵀ, (B, T, D) and (E, D) to (B, T, E), in at least float32.

    That holds under autocast and for low-precision models too.
    Router logits decide which experts run, so rounding them changes the function.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return torch.nn.functional.linear(x.to(exact), weight.to(exact))
    return torch.nn.functional.linear(x.to(exact), weight.to(exact))


def choose_experts(
    logits: Tensor,
    top_k: int,
    *,
    router: str = "sigmoid",
    drop: float = 0.0,
    real: Tensor | None = None,
) -> Routes:
    """Choose the top_k experts of each token by raw logits (B, T, H, E), and weigh them.

    ``sigmoid`` gates are the sigmoid of the chosen logits, ``softmax`` gates the softmax over all
    experts, read at the chosen ones; neither is renormalised. With probability ``drop`` an expert
    cannot be chosen for a token. Where fewer than top_k are left, and at padding, the choice is -1,
    which contributes zero: a weight of -inf would not.
    """
    candidates = logits
    if drop > 0.0:
        candidates = logits.masked_fill(torch.rand_like(logits) < drop, float("-inf"))
    best, selection = candidates.topk(top_k, dim=-1, sorted=False)  # (B, T, H, k) each
    if router == "softmax":
        gates = logits.softmax(dim=-1).gather(-1, selection)  # over the dropped experts too
    else:
        gates = best.sigmoid()
    if drop > 0.0:
        # Fewer than k may be left. A dropped expert's softmax gate is not 0: cut it off here.
        dropped = best == float("-inf")
        selection = selection.masked_fill(dropped, -1)
        gates = gates.masked_fill(dropped, 0.0)
    if real is not None:
        selection = selection.masked_fill(~real[:, :, None, None], -1)
    return Routes(selection, gates)


def mean_probability(logits: Tensor, context: RoutingContext) -> Tensor:
    """Average the softmax of logits (B, T, ..., E) over each row's real tokens: (B, ..., E)."""
    probability = logits.softmax(dim=-1)
    if context.share is None:
        return probability.mean(dim=1)
    # (B, 1, T) @ (B, T, H·E): a row's mean as one product.
    share = context.share.to(probability.dtype)
    return (share @ probability.flatten(2)).view(logits.shape[0], *logits.shape[2:])


def record(logits: Tensor, routes: Routes, context: RoutingContext) -> RouterRecord | None:
    """Keep of a decision on logits (B, T, H, E) what ``context`` asks for; None for nothing."""
    if not context.balance and not context.trace:
        return None
    return RouterRecord(
        mean_probability(logits, context) if context.balance else None,
        logits if context.trace else None,
        *((routes.selection, routes.gates) if context.trace else ()),
    )


def route(
    logits: Tensor,
    top_k: int,
    context: RoutingContext,
    *,
    router: str = "sigmoid",
    drop: float = 0.0,
) -> tuple[Routes, RouterRecord | None]:
    """Choose experts by logits (B, T, H, E) as ``choose_experts`` does, and ``record`` the choice.

    One kernel does both where Triton serves the experts and only the balance loss has to be
    recorded. Its gates are 0 where there is no expert; of equal logits it takes the first expert.
    """
    num_experts = logits.shape[-1]
    plain = context.trace or logits.dtype != torch.float32
    if not plain and resolve_backend("auto", logits.device, logits.dtype) == "triton":
        from moeut.ops.triton import router as triton_router

        if top_k <= num_experts <= triton_router.MAX_EXPERTS:
            dropped = torch.rand_like(logits) < drop if drop > 0.0 else None
            share = context.share if context.balance else None
            gates, probability, _, selection = triton_router.route(
                logits, dropped, context.real, share, top_k, router == "softmax", context.balance
            )
            kept = RouterRecord(probability) if context.balance else None
            return Routes(selection, gates), kept
    routes = choose_experts(logits, top_k, router=router, drop=drop, real=context.real)
    return routes, record(logits, routes, context)


def balance_loss(
    modules: Iterable[Sequence[Tensor]], context: RoutingContext, weight: float
) -> Tensor | None:
    """Return -weight · Σ over modules of the mean entropy of what their router chooses.

    Each module is the sequence of the mean probabilities (B, H, E) of its applications. With p the
    mean over applications and real tokens of softmax(logits), in one row and head:

        loss = -weight · Σ over modules of mean over rows and heads of H(p),  H(p) = -Σ_e p log p

    (arXiv 2405.16039). Rows without a real token are left out. None without modules.
    """
    # Over applications first: the entropy is that of the mean, not the mean of entropies, so a
    # layer that is repeated may use other experts in other repeats.
    means = [
        torch.stack(list(applications)).mean(dim=0) if len(applications) > 1 else applications[0]
        for applications in modules
    ]
    if not means:
        return None
    p = torch.stack(means)  # (modules, B, H, E)
    # A probability may round to zero, where the gradient of p log p would be infinite.
    # (modules, B): summed over experts, averaged over heads.
    entropy = -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(dim=-1).mean(dim=-1)
    if context.real is None:
        return -weight * entropy.mean(dim=1).sum()
    used = context.real.any(dim=1).to(p.dtype)
    return -weight * (entropy * used).sum() / used.sum().clamp_min(1)
