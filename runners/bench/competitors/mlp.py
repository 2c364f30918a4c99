"""A σ-MoE layer and what could replace it, on the same inputs.

Shapes: T tokens, K experts a token, E experts, D model width, F expert width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moeut.ops import Dispatch, SharedWeight, expert_mlp
from runners.bench.competitors import floors
from runners.bench.competitors.draw import Draw
from runners.bench.layers import MlpSize
from runners.bench.peers import Peer
from runners.bench.timing import Candidate

MAX_ALL_EXPERTS_FLOP = 5e10
"""Computing all experts is left out where its forward pass would take more operations than this."""


def mlp_candidates(
    size: MlpSize, backend: str, draw: Draw, peers: Sequence[Peer] = ()
) -> dict[str, Candidate]:
    """Return the σ-MoE layer and its competitors by name."""
    layer = _Mlp.drawn(size, backend, draw)
    sparse = (layer.x, layer.w_up, layer.w_down, layer.gate)
    dense = (layer.x, layer.dense_up, layer.dense_down)
    found = {
        "ours": Candidate(layer.ours, sparse),
        "dense": Candidate(layer.dense, dense),
        "loop": Candidate(layer.loop, sparse),
    }
    if floors.experts_use_onednn(layer.x):
        found["dense, oneDNN"] = Candidate(layer.dense_onednn, dense)
    if size.forward_flop * size.num_experts / size.top_k <= MAX_ALL_EXPERTS_FLOP:
        found["all experts"] = Candidate(layer.all_experts, sparse)
    if draw.device.type == "cuda":
        sorted_before = functools.partial(layer.ours, layer.sort())
        found["ours, sorted before"] = Candidate(sorted_before, sparse)
        if layer.w_up.dtype != layer.x.dtype:
            found["ours, shared"] = Candidate(layer.shared(), sparse)
    if floors.takes_grouped_mm(draw.device, draw.dtype, size.width, size.expert_size):
        found["torch grouped_mm"] = Candidate(layer.grouped_mm, sparse)
    for peer in peers:
        if peer.expert_mlp is not None:
            arguments = (layer.x, layer.w_up, layer.w_down, layer.index, layer.gate)
            found[peer.name] = Candidate(functools.partial(peer.expert_mlp, *arguments), sparse)
    return found


@dataclasses.dataclass(frozen=True)
class _Mlp:
    """Hold the tensors of one layer, and compute it in each way; each returns (T, D)."""

    backend: str
    x: Tensor
    """(T, D)."""
    w_up: Tensor
    """(E, D, F)."""
    w_down: Tensor
    """(E, F, D)."""
    gate: Tensor
    """(T, K)."""
    index: Tensor
    """(T, K) experts."""
    dense_up: Tensor
    """(K · F, D): a dense layer as wide as the active experts of a token."""
    dense_down: Tensor
    """(D, K · F)."""

    @classmethod
    def drawn(cls, size: MlpSize, backend: str, draw: Draw) -> _Mlp:
        active = size.top_k * size.expert_size
        shape = (size.num_experts, size.width, size.expert_size)
        x = draw.activations(size.tokens, size.width)
        w_up = draw.weight(*shape, scale=size.width**-0.5)
        w_down = draw.weight(shape[0], shape[2], shape[1], scale=active**-0.5)
        gate, index = draw.router(size.tokens, size.num_experts, size.top_k)
        dense_up = draw.weight(active, size.width, scale=size.width**-0.5)
        dense_down = draw.weight(size.width, active, scale=active**-0.5)
        return cls(backend, x, w_up, w_down, gate, index, dense_up, dense_down)

    def sort(self) -> Dispatch:
        return Dispatch.from_indices(self.index, len(self.w_up))

    def ours(self, dispatch: Dispatch | None = None) -> Tensor:
        weights = (self.w_up, self.w_down)
        dispatch = self.sort() if dispatch is None else dispatch
        return expert_mlp(self.x, *weights, dispatch, gate=self.gate, backend=self.backend)

    def shared(self) -> Callable[[], Tensor]:
        """Return one of many applications of a shared layer, whose weights were cast before."""
        up, down = (SharedWeight(weight, self.x.dtype) for weight in (self.w_up, self.w_down))
        carriers = up.carrier, down.carrier

        def apply() -> Tensor:
            up.carrier, down.carrier = carriers  # else each call would lead back to those before
            return expert_mlp(self.x, up, down, self.sort(), gate=self.gate, backend=self.backend)

        return apply

    def dense(self) -> Tensor:
        hidden = torch.relu(functional.linear(self.x, self.dense_up))
        return functional.linear(hidden, self.dense_down)

    def dense_onednn(self) -> Tensor:
        hidden = torch.relu(floors.OnednnLinear.apply(self.x, self.dense_up))
        return floors.OnednnLinear.apply(hidden, self.dense_down)

    def loop(self) -> Tensor:
        out = torch.zeros_like(self.x)
        pairs = zip(self.w_up.unbind(0), self.w_down.unbind(0), strict=True)
        for expert, (up, down) in enumerate(pairs):
            rows, choice = (self.index == expert).nonzero(as_tuple=True)
            y = torch.relu(self.x[rows] @ up) @ down
            out = out.index_add(0, rows, y * self.gate[rows, choice].unsqueeze(1))
        return out

    def all_experts(self) -> Tensor:
        zeros = self.x.new_zeros(len(self.x), len(self.w_up))
        weight = zeros.scatter(1, self.index, self.gate)  # (T, E)
        hidden = torch.relu(torch.einsum("td,edf->tef", self.x, self.w_up)) * weight.unsqueeze(2)
        return torch.einsum("tef,efd->td", hidden, self.w_down)

    def grouped_mm(self) -> Tensor:
        return floors.grouped_mm_mlp(self.x, self.w_up, self.w_down, self.sort(), self.gate)
