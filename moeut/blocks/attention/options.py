"""What every kind of attention can be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from moeut.blocks.norms import Norm, NormOptions, NormPlacement
from moeut.blocks.positions import PositionOptions
from moeut.options import (
    OptionError,
    Options,
    derived,
    require,
    require_positive,
    require_probability,
)

Bias = Literal["none", "query_key", "input", "output", "all"]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(Options):
    """Options of every kind of attention."""

    refused_positions: ClassVar[Mapping[str, str]] = {}
    """Kinds of position that it cannot be combined with, and why."""
    counts_columns: ClassVar[bool] = False
    """Whether it looks at how many columns a key is away."""
    tells_order: ClassVar[bool] = False
    """Whether it tells the order of tokens by itself, looking both ways and without positions."""
    has_keys: ClassVar[bool] = True
    """Whether tokens look at keys, so that it can be computed for some of them."""
    num_heads: int = 4
    """Attention heads (H)."""
    head_size: int = derived()
    """Channels of a head; left out: d_model / num_heads."""
    dropout: float = derived()
    """Dropout on attention weights, of a geometric attention on keys; left out: the model's
    ``dropout``."""
    num_key_heads: int = derived()
    """Heads of keys and values, each shared by a group of query heads; left out: num_heads."""
    qk_norm: Literal["none", "before", "after"] = "none"
    """Divide each head's query and key by its root mean square, before or after the rotation of
    rotary positions; without weights, with the precision of the numbers as epsilon."""
    bias: Bias = "none"
    """Biases of the projections: of queries and keys, of those and values (``input``), of the
    output, or of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_heads", "head_size", "num_key_heads")
        require_probability(self, "dropout")

    @property
    def width(self) -> int:
        """Channels of all heads together (A = H·d)."""
        return self.num_heads * self.head_size

    @property
    def query_width(self) -> int:
        """Channels of all queries of a token."""
        return self.width

    @property
    def key_width(self) -> int:
        """Channels of the keys of all heads together (G·d)."""
        return self.num_key_heads * self.head_size

    @property
    def value_heads(self) -> tuple[int, int]:
        """Heads of values, and the channels of each."""
        return self.num_key_heads, self.head_size

    @property
    def biased(self) -> frozenset[str]:
        """The projections that have a bias, by the names of their modules."""
        return _BIASED[self.bias]

    def within(self, *, d_model: int, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's.

        Raises:
            OptionError: ``head_size`` is left out and the heads do not divide ``d_model``, or key
                heads do not divide the heads.
        """
        grouped: int | None = self.num_key_heads
        key_heads = self.num_heads if grouped is None else grouped
        said = f"must divide num_heads={self.num_heads}"
        require(self.num_heads % key_heads == 0, "num_key_heads", key_heads, said)
        head_size: int | None = self.head_size
        if head_size is None:
            if d_model % self.num_heads:
                raise OptionError(
                    "num_heads",
                    self.num_heads,
                    f"must divide d_model={d_model} unless head_size is given",
                )
            head_size = d_model // self.num_heads
        own: float | None = self.dropout
        return dataclasses.replace(
            self,
            head_size=head_size,
            num_key_heads=key_heads,
            dropout=dropout if own is None else own,
        )

    def with_width(self, d_model: int) -> Self:
        """Return these options with as many heads of their size as fill ``d_model`` channels."""
        heads = d_model // self.head_size
        return dataclasses.replace(self, num_heads=heads, num_key_heads=heads)

    def with_head_size(self, head_size: int) -> Self:
        """Return these options with heads of another size."""
        return dataclasses.replace(self, head_size=head_size)

    def across(self) -> AttentionOptions:
        """Return the options of the attention to an encoder's output; here the same."""
        return self

    @property
    def max_tokens(self) -> int | None:
        """The longest row that it has weights for; None: there is no bound."""
        return None

    def check_norms(self, placement: NormPlacement, norms: NormOptions) -> None:
        """Raise ``OptionError`` for norms that do not serve around it."""

    def in_stack(self, *, causal: bool) -> Self:
        """Return the options of a stack, whose tokens may look back alone.

        Raises:
            OptionError: a causal stack cannot have it.
        """
        return self

    def build_norm(self, norms: NormOptions, d_model: int) -> Norm:
        """Return a norm of the layer's state around it."""
        return norms.build(d_model)

    def build(self, d_model: int, position: PositionOptions | None = None) -> Any:
        """Return the module; ``position`` adds its own parameters, cross-attention has none."""
        raise NotImplementedError

    def projection_macs(self, d_model: int) -> tuple[int, int]:
        """Return the work of the source side and of the query side, for one token each.

        Of the source are keys and values, of the query queries and output; each with its router.
        """
        raise NotImplementedError

    def attending_macs(self, length: int) -> int:
        """Return the work of one query with ``length`` keys: logits, and the sum of values."""
        channels = self.head_size + self.value_heads[1]
        return self.query_width // self.head_size * channels * length

    def balance_weights(self) -> dict[str, float]:
        """Return the weight of the balance loss of each router, by the router's name."""
        return {}


_BIASED: Mapping[Bias, frozenset[str]] = {
    "none": frozenset(),
    "query_key": frozenset({"query", "key"}),
    "input": frozenset({"query", "key", "value"}),
    "output": frozenset({"output"}),
    "all": frozenset({"query", "key", "value", "output"}),
}
