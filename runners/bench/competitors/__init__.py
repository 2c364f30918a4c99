"""What the expert operations could be replaced by, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runners.bench.competitors.draw import Draw
from runners.bench.competitors.heads import head_candidates
from runners.bench.competitors.mlp import mlp_candidates
from runners.bench.competitors.routers import dispatch_candidates, router_candidates
from runners.bench.layers import DispatchSize, MlpSize, RouterSize, Size
from runners.bench.peers import Peer
from runners.bench.timing import Candidate


def candidates_for(
    size: Size,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    peers: Sequence[Peer] = (),
    *,
    weight_dtype: torch.dtype | None = None,
) -> dict[str, Candidate]:
    """Return the competitors of one size by name, ``ours`` among them.

    Activations are of ``dtype``, weights and gates of ``weight_dtype`` (default: the same).
    """
    if isinstance(size, DispatchSize):
        return dispatch_candidates(size, backend, device, peers)
    if isinstance(size, RouterSize):
        return router_candidates(size, device, dtype)
    draw = Draw(device, dtype, weight_dtype)
    if isinstance(size, MlpSize):
        return mlp_candidates(size, backend, draw, peers)
    return head_candidates(size, backend, draw, peers)
