"""The two ends of a model: token embedding and output projection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.roles import Role, Roles, constant
from moeut.ops import linear
from moeut.options import Options, derived, require, require_positive


@dataclass(frozen=True, kw_only=True)
class Prefix(Options):
    """Learned rows in front of every sequence: one set, or one of several by number (TRM's puzzle
    embeddings)."""

    rows: int = 0
    """Rows; 0: none."""
    size: int = derived()
    """Numbers that are learned of a set, zeros behind them; left out: rows times d_model."""
    count: int = 1
    """Sets; a row of a batch says which is its own, or has the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rows >= 0, "rows", self.rows, "must be a whole number of at least 0")
        require_positive(self, "size", "count")

    def within(self, *, d_model: int) -> Prefix:
        """Return these options with the size filled in, for rows of width ``d_model``.

        Raises:
            OptionError: there are more numbers than the rows hold.
        """
        whole, size = self.rows * d_model, self.size
        given: int | None = size
        said = f"must be at most rows times d_model, {whole}"
        require(given is None or given <= whole, "size", size, said)
        return self if given is not None or not whole else dataclasses.replace(self, size=whole)


class PrefixRows(nn.Module):
    """Sets of learned rows: ``weight`` (count, size), which starts as 0."""

    def __init__(self, options: Prefix, d_model: int) -> None:
        super().__init__()
        self.rows, self.d_model = options.rows, d_model
        self.weight = nn.Parameter(torch.empty(options.count, options.size))

    def roles(self) -> Roles:
        """Return the role of the rows."""
        return {"weight": constant(0.0)}

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the rows (B, rows, D) of the sets ``numbers`` (B,)."""
        flat = F.embedding(numbers, self.weight)
        flat = F.pad(flat, (0, self.rows * self.d_model - flat.shape[-1]))
        return flat.unflatten(-1, (self.rows, self.d_model))


class Embedding(nn.Embedding):
    """One vector per token: ``weight`` (vocabulary, D), not yet drawn."""

    def __init__(self, size: int, d_model: int) -> None:
        super().__init__(size, d_model, _weight=torch.empty(size, d_model))

    def roles(self) -> Roles:
        """Return the role of the vectors."""
        return {"weight": Role("embedding", self.embedding_dim, self.num_embeddings)}


class EmbeddingAdapter(nn.Module):
    """Projection of embeddings, ``weight`` (D, E), to the width of the model."""

    def __init__(self, embedding_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, embedding_size))

    def roles(self) -> Roles:
        """Return the role of the weight."""
        d_model, embedding_size = self.weight.shape
        return {"weight": Role("mix", embedding_size, d_model)}

    def forward(self, x: Tensor) -> Tensor:
        """Return W x (B, T, D) of embeddings x (B, T, E), in their dtype."""
        return linear(x, self.weight).to(x.dtype)


class Head(nn.Module):
    """Output projection (outputs, D); without a weight of its own if tied to an embedding.

    ``projected`` states are first brought to the width of embeddings: states · A, with A (D, E) a
    parameter ``projection`` or, if ``tied`` to an embedding that an adapter widens, the adapter's.
    Logits are multiplied by ``scale``, and then kept within ± ``cap`` by cap · tanh(logit / cap).
    """

    def __init__(
        self,
        d_model: int,
        outputs: int,
        *,
        tied: bool,
        bias: bool,
        scale: float = 1.0,
        cap: float | None = None,
        projected: bool = False,
        embedding_size: int | None = None,
    ) -> None:
        super().__init__()
        width = d_model if embedding_size is None else embedding_size
        self.projection = None
        self.reads_adapter = projected and tied and width != d_model
        if projected and not self.reads_adapter:
            self.projection = nn.Parameter(torch.empty(d_model, width))
        self.d_model, self.outputs = width, outputs
        self.scale, self.cap = scale, cap
        self.weight = None if tied else nn.Parameter(torch.empty(outputs, width))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def roles(self) -> Roles:
        """Return the roles; the bias beside a tied weight starts at 0."""
        roles = {}
        if self.weight is not None:
            roles["weight"] = Role("head", self.d_model, self.outputs)
        if self.bias is not None:
            own = Role("head_bias", self.d_model, self.outputs)
            roles["bias"] = constant(0.0) if self.weight is None else own
        if self.projection is not None:
            roles["projection"] = Role("mix", *self.projection.shape)
        return roles

    def forward(
        self, states: Tensor, embedding: Tensor, adapter: EmbeddingAdapter | None = None
    ) -> Tensor:  # (..., outputs)
        """Project states (..., D), by ``embedding`` (outputs, D) and ``adapter`` if tied."""
        projection = adapter.weight if self.reads_adapter and adapter else self.projection
        if projection is not None:
            states = linear(states, projection.T)
        logits = linear(states, embedding if self.weight is None else self.weight, self.bias)
        return self.scaled(logits)

    def scaled(self, logits: Tensor) -> Tensor:
        """Return logits (..., outputs) multiplied by the scale, and kept within the cap."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()
