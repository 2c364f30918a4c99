"""A SwitchHead projection, values or outputs, and what could replace it, on the same inputs.

Shapes: T tokens, H heads, e experts a head, E = H · e, K experts a token and head, D model width.
Values go from the model width to the head width, outputs the other way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moeut.ops import Dispatch, expert_linear
from runners.bench.competitors import floors
from runners.bench.competitors.draw import Draw
from runners.bench.layers import HeadSize
from runners.bench.peers import Peer
from runners.bench.timing import Candidate


def head_candidates(
    size: HeadSize, backend: str, draw: Draw, peers: Sequence[Peer] = ()
) -> dict[str, Candidate]:
    """Return a SwitchHead projection and its competitors by name."""
    layer = _Projection.drawn(size, backend, draw)
    sparse = (layer.x, layer.weight, layer.gate)
    dense = (layer.dense_x, layer.dense_weight)
    found = {
        "ours": Candidate(layer.ours, sparse),
        "dense": Candidate(layer.dense, dense),
        "loop": Candidate(layer.loop, sparse),
        "all experts": Candidate(layer.all_experts, sparse),
    }
    if floors.experts_use_onednn(layer.x):
        found["dense, oneDNN"] = Candidate(layer.dense_onednn, dense)
    if floors.takes_grouped_mm(draw.device, draw.dtype, size.width, size.head_width):
        found["torch grouped_mm"] = Candidate(layer.grouped_mm, sparse)
    for peer in peers:
        if peer.expert_linear is not None:
            arguments = (layer.x, layer.weight, layer.index, layer.gate, *layer.slots_per_row)
            found[peer.name] = Candidate(functools.partial(peer.expert_linear, *arguments), sparse)
    return found


@dataclasses.dataclass(frozen=True)
class _Projection:
    """Hold the tensors of one projection, and compute it in each way.

    Values are (T · H, head width), outputs (T, D).
    """

    size: HeadSize
    backend: str
    x: Tensor
    """(T, D) for values, (T · H, head width) for outputs."""
    weight: Tensor
    """(E, width in, width out)."""
    gate: Tensor
    """(T, H, K)."""
    index: Tensor
    """(T, H, K) experts, numbered through all heads."""
    dense_x: Tensor
    dense_weight: Tensor
    """A dense layer as wide as the active experts of a token: H · K · head width."""

    @classmethod
    def drawn(cls, size: HeadSize, backend: str, draw: Draw) -> _Projection:
        is_value = size.kind == "value"
        tokens, heads, top_k = size.tokens, size.num_heads, size.top_k
        shape = (tokens, size.width) if is_value else (tokens * heads, size.head_width)
        width_out = size.head_width if is_value else size.width
        x = draw.activations(*shape)
        weight = draw.weight(size.total_experts, shape[1], width_out, scale=shape[1] ** -0.5)
        gate, index = draw.router(tokens * heads, size.experts_per_head, top_k)
        first_expert = torch.arange(heads, device=draw.device).mul(size.experts_per_head)
        index = index.view(tokens, heads, top_k) + first_expert.view(1, heads, 1)
        # A leaf of the shape that is used, as its gradient is measured.
        gate = gate.detach().view(tokens, heads, top_k).requires_grad_()
        active = heads * top_k * size.head_width
        dense_shape = (active, size.width) if is_value else (size.width, active)
        dense_weight = draw.weight(*dense_shape, scale=dense_shape[1] ** -0.5)
        dense_x = x if is_value else draw.activations(tokens, active)
        return cls(size, backend, x, weight, gate, index, dense_x, dense_weight)

    @property
    def slots_per_row(self) -> tuple[int, int]:
        """Return how many slots read one input row, and how many are summed in one output row."""
        whole, head = self.size.num_heads * self.size.top_k, self.size.top_k
        return (whole, head) if self.size.kind == "value" else (head, whole)

    def sort(self) -> Dispatch:
        return Dispatch.from_indices(self.index, len(self.weight))

    def ours(self) -> Tensor:
        slots_per_input, slots_per_output = self.slots_per_row
        return expert_linear(
            self.x,
            self.weight,
            self.sort(),
            slots_per_input=slots_per_input,
            slots_per_output=slots_per_output,
            gate=self.gate,
            backend=self.backend,
        )

    def dense(self) -> Tensor:
        return functional.linear(self.dense_x, self.dense_weight)

    def dense_onednn(self) -> Tensor:
        return floors.OnednnLinear.apply(self.dense_x, self.dense_weight)

    def loop(self) -> Tensor:
        slots_per_input, slots_per_output = self.slots_per_row
        index, gate = self.index.flatten(), self.gate.flatten()  # (S,)
        out = self.x.new_zeros(len(index) // slots_per_output, self.weight.shape[2])
        for expert, one in enumerate(self.weight.unbind(0)):
            slots = (index == expert).nonzero().squeeze(1)
            y = (self.x[slots // slots_per_input] @ one) * gate[slots].unsqueeze(1)
            out = out.index_add(0, slots // slots_per_output, y)
        return out

    def all_experts(self) -> Tensor:
        tokens, heads, _top_k = self.index.shape
        scores = self.x.new_zeros(tokens, len(self.weight))
        scores = scores.scatter(1, self.index.flatten(1), self.gate.flatten(1))
        scores = scores.view(tokens, heads, -1)  # (T, H, e)
        per_head = self.weight.unflatten(0, (heads, -1))  # (H, e, width in, width out)
        if self.size.kind == "value":
            y = torch.einsum("td,hedf->thef", self.x, per_head)
            return torch.einsum("thef,the->thf", y, scores).flatten(0, 1)
        gated = torch.einsum("thd,the->thed", self.x.view(tokens, heads, -1), scores)
        return torch.einsum("thed,hedf->tf", gated, per_head)

    def grouped_mm(self) -> Tensor:
        return floors.grouped_mm_linear(
            self.x, self.weight, self.sort(), self.gate, *self.slots_per_row
        )
