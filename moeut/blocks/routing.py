"""Routing decisions: logits, expert choice, gates, the record of both, and the balance loss.

Shapes: B rows, T tokens, H heads (1 in a feed-forward), E experts, k active experts (top_k).
Nothing here, nor in the modules that use it, keeps state: a routing decision comes back as a
``RouterRecord`` beside the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from moeut.blocks.neighbours import TokenRow
from moeut.ops import linear
from moeut.ops.backend import resolve_backend
from moeut.ops.shared import SharedWeights
from moeut.recurrence.schedule import Place


@dataclass(frozen=True)
class RoutingContext:
    """What every router of one forward pass, and its experts, have to know."""

    real: Tensor | None = None
    """(B, T) True at real tokens; None: all are. Padding gets no expert and no share in a loss."""

    share: Tensor | None = None
    """(B, 1, T) weight of each token in its row's mean; sums to 1, or to 0 without real tokens.
    Of packed tokens (1, B, M): in the mean of each row."""

    balance: bool = False
    """Whether to record what the balance loss needs."""

    trace: bool = False
    """Whether to keep logits, selections, gates and attention weights."""

    weights: SharedWeights = field(default_factory=SharedWeights)
    """The expert weights that this pass uses many times."""

    mass: Tensor | None = None
    """(B,) part of each row's real tokens that take part in this application; None: all do."""

    keep: Tensor | None = None
    """(B, T) probability with which each token takes part, a weight in the losses of routers that
    ask for it; None: 1 for all."""

    place: Place | None = None
    """Where in its schedule the application is; None outside a stack."""

    row: TokenRow | None = None
    """Who stands beside whom; None outside a stack: all tokens of a row, in order."""

    modulation: tuple[Tensor, Tensor] | None = None
    """Scale and shift (D) or (B, T, D) of what every sublayer reads; None: it is as it is."""

    added_values: Callable[[Tensor], Tensor] | None = None
    """What joins the values (B, G, T, d) of self-attention, given what it reads (B, T, D)."""

    @property
    def repeat(self) -> int | None:
        """Number of the pass through the group, from 0; None in prelude and coda."""
        return None if self.place is None else self.place.repeat

    def own_name(self, name: str) -> str:
        """Return a name that no other application uses in a cache."""
        return name if self.place is None else f"{name}.{self.place.application}"

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

    def among(self, active: Tensor, dtype: torch.dtype) -> RoutingContext:
        """Return the context of an application in which the ``active`` (B, T) tokens take part.

        The others get no expert. Shares stay parts of the whole row, so that the applications of a
        pass weigh as much as tokens took part in them. They are float64 if ``dtype`` is.
        """
        real = active if self.real is None else active & self.real
        if not self.balance:
            return replace(self, real=real)
        share = self._share_of(real, dtype)
        return replace(self, real=real, share=share.unsqueeze(1), mass=share.sum(dim=1))

    def packed(self, active: Tensor, tokens: Tensor, dtype: torch.dtype) -> RoutingContext:
        """Return the context of ``tokens`` (M,), packed into one row, of the ``active`` (B, T).

        They are all real. Shares are as in ``among``.
        """
        if not self.balance:
            return replace(self, real=None)
        share = self._share_of(active, dtype)
        batch, length = active.shape
        rows = torch.arange(batch, device=tokens.device).unsqueeze(1) == tokens // length  # (B, M)
        of_tokens = rows * share.flatten().index_select(0, tokens)
        return replace(self, real=None, share=of_tokens.unsqueeze(0), mass=share.sum(dim=1))

    def _share_of(self, active: Tensor, dtype: torch.dtype) -> Tensor:  # (B, T)
        """Return the part of its row's real tokens that each active one is, 0 for others."""
        count = active.shape[1] if self.real is None else self.real.sum(dim=1, keepdim=True)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        return active.to(exact) / torch.as_tensor(count, device=active.device).clamp_min(1)


class Mutual(NamedTuple):
    """Sums over the tokens of each row, of what a router whose experts compete thinks of them."""

    probability: Tensor
    """(B, E)"""

    entropy: Tensor
    """(B,) of the probabilities of a token."""

    mass: Tensor
    """(B,) what tokens count."""

    is_sum: bool
    """Whether the loss is the sum of two entropies, not their difference."""


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

    mass: Tensor | None = None
    """(B,) part of each row's real tokens that the average is over; None: all of them."""

    mutual: Mutual | None = None
    """What the loss of a router whose experts compete needs, in place of ``probability``."""

    def select_heads(self, heads: slice) -> RouterRecord:
        """Return the record of some of the heads, where several routers decided in one go."""

        def part(kept: Tensor | None) -> Tensor | None:
            return None if kept is None else kept[:, :, heads]

        probability = None if self.probability is None else self.probability[:, heads]
        logits, selection, gates = part(self.logits), part(self.selection), part(self.gates)
        return RouterRecord(probability, logits, selection, gates, self.mass)


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
            return linear(x.to(exact), weight.to(exact))
    return linear(x.to(exact), weight.to(exact))


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
    # (B, 1, T) @ (B, T, H·E): a row's mean as one product. Packed: (1, B, M) @ (1, M, H·E).
    share = context.share.to(probability.dtype)
    return (share @ probability.flatten(2)).view(-1, *logits.shape[2:])


def record(logits: Tensor, routes: Routes, context: RoutingContext) -> RouterRecord | None:
    """Keep of a decision on logits (B, T, H, E) what ``context`` asks for; None for nothing."""
    if not context.balance and not context.trace:
        return None
    return RouterRecord(
        mean_probability(logits, context) if context.balance else None,
        logits if context.trace else None,
        routes.selection if context.trace else None,
        routes.gates if context.trace else None,
        context.mass,
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
    is_packed = context.share is not None and context.share.shape[1] > 1
    plain = context.trace or is_packed or logits.dtype != torch.float32
    if not plain and resolve_backend("auto", logits.device, logits.dtype) == "triton":
        from moeut.ops.triton import router as triton_router

        if top_k <= num_experts <= triton_router.MAX_EXPERTS:
            dropped = torch.rand_like(logits) < drop if drop > 0.0 else None
            share = context.share if context.balance else None
            gates, probability, _, selection = triton_router.route(
                logits, dropped, context.real, share, top_k, router == "softmax", context.balance
            )
            kept = RouterRecord(probability, mass=context.mass) if context.balance else None
            return Routes(selection, gates), kept
    routes = choose_experts(logits, top_k, router=router, drop=drop, real=context.real)
    return routes, record(logits, routes, context)


def balance_loss(
    modules: Iterable[Sequence[RouterRecord]],
    context: RoutingContext,
    weight: float,
    row_shares: Tensor | None = None,
) -> Tensor | None:
    """Return -weight · Σ over modules of the mean entropy of what their router chooses.

    Each module is the sequence of the records of its applications. With p the mean over
    applications and the tokens that took part in them of softmax(logits), in one row and head:

        loss = -weight · Σ over modules of mean over rows and heads of H(p),  H(p) = -Σ_e p log p

    (arXiv 2405.16039). Rows without a real token are left out. With ``row_shares`` (B,) the mean
    over rows is a sum in which each has its share. None without modules.
    """
    # Over applications first: the entropy is that of the mean, not the mean of entropies, so a
    # layer that is repeated may use other experts in other repeats.
    by_width: dict[int, list[Tensor]] = {}  # layers outside the group may have other experts
    for applications in modules:
        mean = _mean_over_applications(applications)
        by_width.setdefault(mean.shape[-1], []).append(mean)
    if not by_width:
        return None
    losses = [
        _negative_entropy(torch.stack(means), context, weight, row_shares)
        for means in by_width.values()
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _negative_entropy(
    p: Tensor, context: RoutingContext, weight: float, row_shares: Tensor | None
) -> Tensor:
    """Return -weight times the entropy of mean probabilities p (modules, B, H, E), summed."""
    # A probability may round to zero, where the gradient of p log p would be infinite.
    # (modules, B): summed over experts, averaged over heads.
    entropy = -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(dim=-1).mean(dim=-1)
    if row_shares is not None:
        return -weight * (entropy * row_shares.to(p.dtype)).sum()
    if context.real is None:
        return -weight * entropy.mean(dim=1).sum()
    used = context.real.any(dim=1).to(p.dtype)
    return -weight * (entropy * used).sum() / used.sum().clamp_min(1)


def _mean_over_applications(applications: Sequence[RouterRecord]) -> Tensor:
    """Return the mean probability (B, H, E) of a router over all tokens of its applications."""
    probabilities = [r.probability for r in applications if r.probability is not None]
    masses = [record.mass for record in applications]
    if all(mass is None for mass in masses):
        if len(probabilities) == 1:
            return probabilities[0]
        return torch.stack(probabilities).mean(dim=0)
    like = probabilities[0]
    # Where tokens were left out, an application weighs as much as tokens took part in it.
    whole = like.new_ones(like.shape[0])
    mass = torch.stack([whole if m is None else m.to(like.dtype) for m in masses]).sum(dim=0)
    tiny = torch.finfo(like.dtype).tiny
    return torch.stack(probabilities).sum(dim=0) / mass.clamp_min(tiny)[:, None, None]


def mutual_information_loss(
    modules: Iterable[Sequence[RouterRecord]], weight: float, row_shares: Tensor | None = None
) -> Tensor | None:
    """Return the sum over routers of ± the mutual information of experts and tokens.

    The loss is that of ``moeut.blocks.competing``, times ``weight``; None without routers.

    Each module is the sequence of the records of its applications. ``row_shares`` (B,) are the
    shares of these rows in a larger batch, to which the loss of these rows alone then counts: the
    probabilities are averaged over no more rows than these.
    """
    losses = []
    for records in modules:
        mutual = [record.mutual for record in records if record.mutual is not None]
        # Summed over rows first: packed tokens are one row.
        mass = torch.stack([one.mass.sum() for one in mutual]).sum() + 1e-12
        mean = torch.stack([one.probability.sum(dim=0) for one in mutual]).sum(dim=0) / mass
        of_tokens = torch.stack([one.entropy.sum() for one in mutual]).sum() / mass
        sign = 1.0 if mutual[0].is_sum else -1.0
        losses.append(of_tokens + sign * entropy_of(mean))
    if not losses:
        return None
    share = 1.0 if row_shares is None else row_shares.sum()
    return weight * torch.stack(losses).sum() * share


def entropy_of(probability: Tensor) -> Tensor:
    """Return -Σ p log p over the last dimension; 0 log 0 is 0, and its gradient finite."""
    tiny = torch.finfo(probability.dtype).tiny
    return -(probability * probability.clamp_min(tiny).log()).sum(dim=-1)
