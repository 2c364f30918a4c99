"""The two ends of a model: token embedding and output projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Role, Roles, constant
from moeut.ops import linear


class Embedding(nn.Embedding):
    """One vector per token: ``weight`` (vocabulary, D), not yet drawn."""

    def __init__(self, size: int, d_model: int) -> None:
        super().__init__(size, d_model, _weight=torch.empty(size, d_model))

    def roles(self) -> Roles:
        """Return the role of the vectors."""
        return {"weight": Role("embedding", self.embedding_dim, self.num_embeddings)}


class Head(nn.Module):
    """Output projection (outputs, D); without a weight of its own if tied to an embedding."""

    def __init__(self, d_model: int, outputs: int, *, tied: bool, bias: bool) -> None:
        super().__init__()
        self.d_model, self.outputs = d_model, outputs
        self.weight = None if tied else nn.Parameter(torch.empty(outputs, d_model))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def roles(self) -> Roles:
        """Return the roles; the bias beside a tied weight starts at 0."""
        roles = {}
        if self.weight is not None:
            roles["weight"] = Role("head", self.d_model, self.outputs)
        if self.bias is not None:
            own = Role("head_bias", self.d_model, self.outputs)
            roles["bias"] = constant(0.0) if self.weight is None else own
        return roles

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:  # (..., outputs)
        """Project states (..., D), by ``embedding`` (outputs, D) if tied."""
        return linear(states, embedding if self.weight is None else self.weight, self.bias)
