"""The sorting of a routing decision, and a router, beside plain PyTorch on the same inputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from moeut.blocks import routing
from moeut.ops import Dispatch
from runners.bench.competitors.draw import Draw
from runners.bench.layers import DispatchSize, RouterSize
from runners.bench.peers import Peer
from runners.bench.timing import Candidate


def dispatch_candidates(
    size: DispatchSize, backend: str, device: torch.device, peers: Sequence[Peer] = ()
) -> dict[str, Candidate]:
    """Return the sorting of a routing decision, ours and others'; there is nothing to learn."""
    _gate, index = Draw(device, torch.float32).router(
        size.tokens, size.total_experts, size.slots_per_token
    )

    def ours() -> tuple[Tensor, Tensor]:
        dispatch = Dispatch.from_indices(index, size.total_experts, backend=backend)
        return dispatch.order, dispatch.offsets

    def sort() -> tuple[Tensor, Tensor]:
        key, order = torch.sort(index.flatten(), stable=True)
        bounds = torch.arange(size.total_experts + 1, device=device)
        return order, torch.searchsorted(key, bounds)

    candidates = {"ours": Candidate(ours, (index,)), "torch.sort": Candidate(sort, (index,))}
    for peer in peers:
        if peer.dispatch is not None:
            run = functools.partial(peer.dispatch, index, size.total_experts)
            candidates[peer.name] = Candidate(run, (index,))
    return candidates


def router_candidates(
    size: RouterSize, device: torch.device, dtype: torch.dtype
) -> dict[str, Candidate]:
    """Return a σ-MoE router as the layers call it, in plain PyTorch, and its logits alone."""
    draw = Draw(device, dtype, torch.float32)
    batch = max(1, size.tokens // 1024)
    x = draw.activations(batch, size.tokens // batch, size.width)
    weight = draw.weight(size.num_experts, size.width, scale=size.width**-0.5)
    context = routing.RoutingContext(balance=True)

    def logits() -> Tensor:
        return routing.router_logits(x, weight).unsqueeze(2)

    def ours() -> tuple[Tensor, Tensor]:
        routes, record = routing.route(logits(), size.top_k, context)
        assert record is not None
        assert record.probability is not None
        return routes.gates, record.probability

    def plain() -> tuple[Tensor, Tensor]:
        scores = logits()
        routes = routing.choose_experts(scores, size.top_k)
        return routes.gates, routing.mean_probability(scores, context)

    inputs = (x, weight)
    return {
        "ours": Candidate(ours, inputs),
        "plain PyTorch": Candidate(plain, inputs),
        "logits": Candidate(logits, inputs),
    }
