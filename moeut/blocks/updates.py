"""How a sublayer's output becomes the next state: added to it, or copied in through a gate.

A layer asks its update twice: after attention (and cross-attention) for the state between its
sublayers, and after the feed-forward for its own result, which may look back at the state that the
layer started from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.norms import NormOptions, NormPlacement
from moeut.blocks.roles import Role, Roles, constant, decision
from moeut.ops import Linear, dropout
from moeut.options import Options, derived, require, require_positive, require_probability


class Update(nn.Module):
    """The residual update; a kind of its own overrides what it does otherwise."""

    drops_last: ClassVar[bool] = True
    """Whether the model's dropout falls on what ``last`` is given to change."""

    def between(self, x: Tensor, change: Tensor, norm: nn.Module | None) -> Tensor:
        """Return the state (B, T, D) after an attention that read x and gave ``change``.

        ``norm`` is the sublayer's norm where it norms the sum (``post``, ``sandwich``), else None.
        """
        x = x + change
        return x if norm is None else norm(x)

    def last(
        self, start: Tensor, x: Tensor, change: Tensor, norm: nn.Module | None, routed: Tensor
    ) -> Tensor:
        """Return the layer's result (B, T, D).

        The layer read ``start``; x is the state after its attention, which the feed-forward's norm
        makes ``routed`` (the same without one), and ``change`` what the feed-forward gave.
        """
        return self.between(x, change, norm)


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(Options):
    """What every kind of update has."""

    def within(self, *, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        return self

    def check(self, placement: NormPlacement) -> None:
        """Raise ``OptionError`` where the norms stand at a place that does not serve."""

    def in_stack(self, *, num_applications: int) -> Self:
        """Return the options of a stack that applies that many layers."""
        return self

    def needs_norm(self, placement: NormPlacement, *, has_router: bool) -> bool:
        """Return whether the norm of the feed-forward has something to norm.

        ``has_router``: whether the feed-forward has one, which ``peri`` norms for.
        """
        return placement != "peri" or has_router

    def needs_second_norm(self, placement: NormPlacement) -> bool:
        """Return whether a second norm stands behind the feed-forward."""
        return placement in ("sandwich", "branch")

    def build(self, d_model: int, norms: NormOptions) -> Update:
        """Return the module of one layer, for states of width ``d_model``."""
        raise NotImplementedError

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of one layer for one token."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Residual(UpdateOptions):
    """The output of every sublayer is added to its input."""

    kind: ClassVar[str] = "residual"

    def build(self, d_model: int, norms: NormOptions) -> Update:
        """Return the update, which has no parameters."""
        return Update()


@dataclass(frozen=True, kw_only=True)
class DeepNorm(Residual):
    """The input of every sublayer counts more than its output: norm(alpha · x + f(x)).

    ``initialization: deepnorm`` draws the weights that the paper goes with.
    """

    kind: ClassVar[str] = "deepnorm"
    alpha: float = derived()
    """Factor on the input; left out: (2 · applied layers of the stack)^(1/4) (arXiv 2203.00555), or
    what the paper has for an encoder and for its decoder, where ``initialization`` is deepnorm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given: float | None = self.alpha
        ok = given is None or 0.0 < given < math.inf
        require(ok, "alpha", given, "must be a finite number above 0")

    def check(self, placement: NormPlacement) -> None:
        """Raise ``OptionError`` where no norm acts on the sum, which would then grow and grow."""
        said = "needs a norm that acts on the sum; expected norm: post or sandwich"
        require(placement in ("post", "sandwich"), "kind", self.kind, said)

    def in_stack(self, *, num_applications: int) -> Self:
        """Return the options of a stack that applies that many layers."""
        return self.with_default((2.0 * num_applications) ** 0.25)

    def with_default(self, alpha: float) -> Self:
        """Return these options with ``alpha``, if none was given."""
        given: float | None = self.alpha
        return dataclasses.replace(self, alpha=alpha) if given is None else self

    def build(self, d_model: int, norms: NormOptions) -> Update:
        """Return the update, which has no parameters."""
        return DeepNormUpdate(self.alpha)


class DeepNormScales(NamedTuple):
    """What a stack of DeepNorm has (arXiv 2203.00555)."""

    alpha: float
    """Factor on the input of every sublayer."""

    beta: float
    """Factor on the weights that the output of a sublayer is in proportion to."""


def deepnorm_of_pair(encoder: int, decoder: int) -> tuple[DeepNormScales, DeepNormScales]:
    """Return the scales of an encoder of N layers and of its decoder of M, as they are applied.

    α is 0.81 · (N⁴ M)^(1/16) and (3 M)^(1/4), β is 0.87 · (N⁴ M)^(-1/16) and (12 M)^(-1/4).
    """
    both = (encoder**4 * decoder) ** (1 / 16)
    of_decoder = DeepNormScales((3.0 * decoder) ** 0.25, (12.0 * decoder) ** -0.25)
    return DeepNormScales(0.81 * both, 0.87 / both), of_decoder


class DeepNormUpdate(Update):
    """norm(alpha · x + change)."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def between(self, x: Tensor, change: Tensor, norm: nn.Module | None) -> Tensor:
        """Return the state (B, T, D) after a sublayer that read x and gave ``change``."""
        return super().between(self.alpha * x, change, norm)


@dataclass(frozen=True, kw_only=True)
class CopyGate(UpdateOptions):
    """A gate decides how much of a token's state the layer replaces; the rest is copied.

    With h the state that the layer read, z that after its attention and p what the feed-forward
    makes of z (arXiv 2110.07732, section 3.1):

        g = σ(down(relu(up(z))))
        h ← h · (1 - g) + proposal(p) · g
    """

    kind: ClassVar[str] = "copy_gate"
    proposal: Literal["norm", "tanh"] = "norm"
    """What bounds p before it is copied in: a layer norm of its own, as in the Neural Data Router,
    or tanh, as in its variant without geometric attention."""
    gate: Literal["vector", "scalar"] = "vector"
    """A gate for each channel of a token, or one for all of them."""
    hidden_multiple: int = 1
    """Hidden units of the gate, in multiples of d_model."""
    initial_bias: float = -3.0
    """Initial bias of the gate's logits; below 0, a layer begins by copying."""
    gate_dropout: float = 0.0
    """Probability that a token is copied as it is, in training."""
    dropout: float = derived()
    """Dropout on the gate's hidden units, with none on p; left out: the model's ``dropout``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_multiple")
        require_probability(self, "gate_dropout", "dropout")

    def within(self, *, dropout: float) -> Self:
        """Return these options with what is left out filled in from the model's."""
        own: float | None = self.dropout
        return dataclasses.replace(self, dropout=dropout if own is None else own)

    def needs_norm(self, placement: NormPlacement, *, has_router: bool) -> bool:
        """Return whether the gate and the feed-forward read a normed state.

        With ``post`` norms what the update makes of p stands in the place of the last one.
        """
        return placement != "post"

    def needs_second_norm(self, placement: NormPlacement) -> bool:
        """Return that what the update makes of p stands in its place."""
        return False

    def build(self, d_model: int, norms: NormOptions) -> Update:
        """Return the gate, and the norm of the proposal where it has one."""
        return CopyGateUpdate(self, d_model, norms)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of the gate for one token."""
        outputs = d_model if self.gate == "vector" else 1
        return self.hidden_multiple * d_model * (d_model + outputs)


class CopyGateUpdate(Update):
    """The gate, ``up`` (M·D, D) and ``down`` (D or 1, M·D), and the norm of the proposal."""

    drops_last = False

    def __init__(self, options: CopyGate, d_model: int, norms: NormOptions) -> None:
        super().__init__()
        self.options = options
        hidden = options.hidden_multiple * d_model
        self.up = Linear(d_model, hidden)
        self.down = Linear(hidden, d_model if options.gate == "vector" else 1)
        self.norm = norms.build(d_model) if options.proposal == "norm" else None

    def roles(self) -> Roles:
        """Return the role of each parameter of the gate."""
        d_model, hidden = self.up.in_features, self.up.out_features
        return {
            "up.weight": Role("up", d_model, hidden, is_matrix=False),
            "up.bias": Role("bias", d_model, hidden),
            "down.weight": decision(hidden, self.down.out_features),
            "down.bias": constant(self.options.initial_bias),
        }

    def last(
        self, start: Tensor, x: Tensor, change: Tensor, norm: nn.Module | None, routed: Tensor
    ) -> Tensor:
        """Return (B, T, D) between ``start`` and the proposal, by the gate of ``routed``."""
        proposal = change.tanh() if self.norm is None else self.norm(change)
        gate = self._gate(routed)
        return (start * (1 - gate) + proposal * gate).to(start.dtype)

    def _gate(self, routed: Tensor) -> Tensor:  # (B, T, D or 1)
        """Return the gates, in at least float32: near 0 and 1, where they stand, 1 - g is fine."""
        training, options = self.training, self.options
        hidden = dropout(F.relu(self.up(routed)), options.dropout, training)
        logits = self.down(hidden)
        exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
        gate = logits.to(exact).sigmoid()
        if options.gate_dropout and training:
            closed = torch.rand_like(gate[..., :1]) < options.gate_dropout
            gate = gate.masked_fill(closed, 0.0)
        return gate


UPDATE: Mapping[str, type[UpdateOptions]] = {
    "residual": Residual,
    "copy_gate": CopyGate,
    "deepnorm": DeepNorm,
}
