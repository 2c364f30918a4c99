"""Token mixing: a gated feed-forward over positions in the place of attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor
from torch.nn import functional as F

from moeut.blocks.attention.base import (
    Attention,
    AttentionContext,
    AttentionOptions,
    AttentionOutput,
    KeyValueStore,
    Participation,
    Source,
)
from moeut.blocks.norms import Norm, NormOptions, NormPlacement, PositionNorm
from moeut.blocks.own import Relaxable
from moeut.blocks.positions import PositionOptions
from moeut.blocks.roles import Role, Roles
from moeut.blocks.routing import RoutingContext
from moeut.ops import Linear, dropout, linear
from moeut.options import OptionError, require, require_positive


@dataclass(frozen=True, kw_only=True)
class TokenMixing(AttentionOptions):
    """A gated feed-forward over the positions of a row in the place of attention.

    It has no heads, no queries and no keys, so the options of those have no effect. Every token
    reads every other: only encoders can have it.
    """

    kind: ClassVar[str] = "token_mixing"
    tells_order: ClassVar[bool] = True
    has_keys: ClassVar[bool] = False
    refused_positions: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("rotary", "relative", "fire", "clipped"),
        "it has weights for each position, and no queries and keys where they would act; expected "
        "position.kind none, or what is added to the embedding: sinusoidal, learned, abacus",
    )
    max_length: int = 128
    """Positions that have weights; a longer row is refused."""
    hidden_size: int = 128
    """Hidden units over positions."""
    norm_over: Literal["channels", "positions"] = "channels"
    """What the norm behind it is taken over; ``positions``, as in the Tiny Recursive Model, takes
    ``norm: post``, ``norm_kind: rms`` and ``norm_weights: false``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_length", "hidden_size")
        for name, default in (("num_heads", 4), ("qk_norm", "none"), ("bias", "none")):
            value = getattr(self, name)
            require(
                value == default, name, value, f"has no effect without heads; leave it {default}"
            )

    @property
    def max_tokens(self) -> int:
        """The longest row that has weights."""
        return self.max_length

    def within(self, *, d_model: int, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        own: float | None = self.dropout
        dropout = dropout if own is None else own
        grouped = self.num_heads
        return dataclasses.replace(self, head_size=d_model, num_key_heads=grouped, dropout=dropout)

    def check_norms(self, placement: NormPlacement, norms: NormOptions) -> None:
        """Raise ``OptionError`` for norms that cannot be taken over positions."""
        is_bare = norms.kind == "rms" and not norms.weights
        ok = self.norm_over == "channels" or (placement == "post" and is_bare)
        said = "takes norm: post, norm_kind: rms and norm_weights: false"
        require(ok, "norm_over", self.norm_over, said)

    def in_stack(self, *, causal: bool) -> Self:
        """Return these options.

        Raises:
            OptionError: tokens would see later ones in a causal stack.
        """
        if causal:
            said = (
                "reads all tokens of a row, and this form has a stack that looks back alone; "
                "expected an encoder_classifier or encoder_labeller"
            )
            raise OptionError("kind", self.kind, said)
        return self

    def build_norm(self, norms: NormOptions, d_model: int) -> Norm:
        """Return the norm around it."""
        return norms.build(d_model) if self.norm_over == "channels" else PositionNorm(norms.epsilon)

    def build(self, d_model: int, position: PositionOptions | None = None) -> TokenMixingMLP:
        """Return the module; no position has parameters in it."""
        return TokenMixingMLP(self, d_model)

    def projection_macs(self, d_model: int) -> tuple[int, int]:
        """Return nothing of keys, and what one token of a row costs in all channels."""
        return 0, 3 * d_model * self.hidden_size

    @property
    def value_heads(self) -> tuple[int, int]:
        """What is mixed is the whole state: one head."""
        return 1, self.head_size

    def attending_macs(self, length: int) -> int:
        """Return 0: there are no logits."""
        return 0


class TokenMixingMLP(Attention[None]):
    """down(silu(gate(xᵀ)) · up(xᵀ))ᵀ over the positions of each channel (``mlp_t`` of TRM).

    ``gate`` and ``up`` are (F, L), ``down`` (L, F) of L positions; a row of T tokens uses the first
    T. Padding counts as 0, and so do tokens that are not seen.
    """

    projections = ()

    def __init__(self, options: TokenMixing, d_model: int) -> None:
        Relaxable.__init__(self)
        self.dropout = options.dropout
        self.norms_positions = options.norm_over == "positions"
        self.gate = Linear(options.max_length, options.hidden_size, bias=False)
        self.up = Linear(options.max_length, options.hidden_size, bias=False)
        self.down = Linear(options.hidden_size, options.max_length, bias=False)

    def roles(self) -> Roles:
        """Return the role of each parameter."""
        length, hidden = self.up.in_features, self.up.out_features
        into = Role("up", length, hidden)
        down = Role("weight", hidden, length)
        return {"gate.weight": into, "up.weight": into, "down.weight": down}

    def forward(
        self,
        routed: Tensor,
        plain: Tensor,
        context: AttentionContext,
        *,
        source: Source | None = None,
        cache: KeyValueStore | None = None,
        application: int = 0,
        participation: Participation | None = None,
    ) -> AttentionOutput:
        """Mix the tokens of each row, the plain view (B, T, D), or those of ``source``.

        Raises:
            ValueError: a row is longer than there are weights, or there is a cache.
        """
        if cache is not None:
            raise ValueError("attention.kind=token_mixing: has no keys that a cache could hold")
        if source is None:
            source = self.project_source(routed, plain, context.routing)
        kept = None
        if participation is not None and participation.is_shared:
            source = kept = participation.merge(source.key, source.value)
        mixed = source.value.squeeze(1)  # (B, T, D)
        length, most = plain.shape[1], self.up.in_features
        if length > most:
            raise ValueError(f"sequence length {length}: token mixing ends at max_length={most}")
        real = _real(context)
        x = mixed if real is None else mixed * real
        x = x.mT  # (B, D, T)
        hidden = F.silu(linear(x, self.gate.weight[:, :length]))
        hidden = hidden * linear(x, self.up.weight[:, :length])  # (B, D, F)
        if self.dropout and self.training:
            hidden = dropout(hidden, self.dropout)
        return AttentionOutput(linear(hidden, self.down.weight[:length]).mT, {}, None, kept)

    def project_source(self, routed: Tensor, plain: Tensor, context: RoutingContext) -> Source:
        """Return what is mixed of tokens, both views (B, T, D): one head of all channels."""
        value = plain.unsqueeze(1)
        if context.added_values is not None:
            value = value + context.added_values(routed).to(value.dtype)
        return Source(value, value)


def _real(context: AttentionContext) -> Tensor | None:  # (B, T, 1)
    row, visible = context.routing.row, context.visible
    real = None if row is None else row.real
    if real is None or visible is None:
        seen = visible if real is None else real
    else:
        seen = real & visible
    return None if seen is None else seen.unsqueeze(-1)
