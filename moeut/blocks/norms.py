"""Norms, their kinds, and where they stand around a sublayer.

========  =====================================================================================
norm      a sublayer f with the norms N and M
========  =====================================================================================
pre       x + f(N(x))
post      N(x + f(x))
peri      x + f(routed=N(x), plain=x): the norm feeds only what a softmax or a sigmoid follows,
          queries, keys and routers; values and expert weights see x itself (arXiv 2405.16039)
sandwich  M(x + f(N(x))): the second norm acts on the sum, not on the branch (arXiv 2502.05171)
branch    x + M(f(N(x))): the second norm acts on the branch (arXiv 2111.09883, 2510.25741)
========  =====================================================================================
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from moeut.blocks.neighbours import TokenRow
from moeut.blocks.roles import Roles, constant

NormPlacement = Literal["pre", "post", "peri", "sandwich", "branch"]
NormKind = Literal["layer", "rms", "unbiased"]


class NormOptions(NamedTuple):
    """What all norms of a stack are."""

    kind: NormKind = "layer"
    epsilon: float = 1e-5
    weights: bool = True
    """Whether a norm scales (and shifts) what it has normed."""

    def build(self, width: int, *, weights: bool | None = None) -> Norm:
        """Return a norm over ``width`` channels; ``weights`` overrides the option of that name."""
        has_weights = self.weights if weights is None else weights
        return _KINDS[self.kind](width, self.epsilon, has_weights)


class Norm(nn.Module):
    """A norm over the last dimension, with a weight and, unless it is ``rms``, a bias (D)."""

    def roles(self) -> Roles:
        """Return the roles: a new norm only normalises."""
        starts = {"weight": 1.0, "bias": 0.0}
        return {
            name: constant(start)
            for name, start in starts.items()
            if getattr(self, name, None) is not None
        }


class LayerNorm(Norm, nn.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon) · weight + bias."""

    def __init__(self, width: int, epsilon: float, has_weights: bool = True) -> None:
        nn.LayerNorm.__init__(self, width, epsilon, elementwise_affine=has_weights)


class RMSNorm(Norm, nn.RMSNorm):
    """x / sqrt(mean of x² + epsilon) · weight (arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float, has_weights: bool = True) -> None:
        nn.RMSNorm.__init__(self, width, epsilon, elementwise_affine=has_weights)


class UnbiasedNorm(Norm):
    """weight · (x - mean) / (deviation + epsilon) + bias, with the unbiased standard deviation.

    A PyTorch port of the Universal Transformer (andreamad8/Universal-Transformer-Pytorch at
    e6b0637) has it in the place of layer norm.
    """

    def __init__(self, width: int, epsilon: float, has_weights: bool = True) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.empty(width)) if has_weights else None
        self.bias = nn.Parameter(torch.empty(width)) if has_weights else None

    def forward(self, x: Tensor) -> Tensor:  # (..., D)
        """Norm x (..., D), in at least float32."""
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        centred = x.to(exact) - x.to(exact).mean(dim=-1, keepdim=True)
        variance = centred.square().sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)
        # The gradient of a root is infinite at 0, where channels are equal.
        deviation = (variance + torch.finfo(exact).tiny).sqrt()
        normed = (centred / (deviation + self.epsilon)).to(x.dtype)
        if self.weight is None or self.bias is None:
            return normed
        return self.weight * normed + self.bias


class PositionNorm(Norm):
    """x / sqrt(mean of x² over the real tokens of a row + epsilon), for each channel."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def roles(self) -> Roles:
        """Return nothing: it has no parameters."""
        return {}

    def forward(self, x: Tensor, row: TokenRow | None = None) -> Tensor:  # (B, T, D)
        """Norm x (B, T, D), in at least float32."""
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        squares = x.to(exact).square()
        if row is None or row.real is None:
            mean = squares.mean(dim=1, keepdim=True)
        else:
            real = row.real.unsqueeze(-1)
            mean = (squares * real).sum(dim=1, keepdim=True)
            mean = mean / real.sum(dim=1, keepdim=True).clamp_min(1)
        return (x.to(exact) * (mean + self.epsilon).rsqrt()).to(x.dtype)


_KINDS: dict[NormKind, type[LayerNorm] | type[RMSNorm] | type[UnbiasedNorm]] = {
    "layer": LayerNorm,
    "rms": RMSNorm,
    "unbiased": UnbiasedNorm,
}


def views(x: Tensor, norm: nn.Module | None, placement: NormPlacement) -> tuple[Tensor, Tensor]:
    """Return the routed and the plain view of a sublayer's input x (B, T, D)."""
    if norm is None or placement == "post":
        return x, x
    normed = norm(x)
    return normed, x if placement == "peri" else normed


def modulated(
    both: tuple[Tensor, Tensor], modulation: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the routed view, scaled and shifted, and the plain one, if it is no other tensor, too.

    ``modulation``: scale and shift (D) or (B, T, D); None: there is none.
    """
    if modulation is None:
        return both
    routed, plain = both
    scale, shift = modulation
    changed = routed * (1.0 + scale) + shift
    return changed, changed if plain is routed else plain
