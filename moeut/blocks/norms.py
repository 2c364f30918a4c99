"""Layer norms, and where they stand around a sublayer.

======  =======================================================================================
norm    a sublayer f with norm N
======  =======================================================================================
pre     x + f(N(x))
post    N(x + f(x))
peri    x + f(routed=N(x), plain=x): the norm feeds only what a softmax or a sigmoid follows,
        queries, keys and routers; values and expert weights see x itself (arXiv 2405.16039)
======  =======================================================================================
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from moeut.blocks.roles import Roles, constant

NormPlacement = Literal["pre", "post", "peri"]


class Norm(nn.LayerNorm):
    """Layer norm over the last dimension, with weight and bias (D)."""

    def __init__(self, d_model: int, epsilon: float) -> None:
        super().__init__(d_model, epsilon)

    def roles(self) -> Roles:
        """Return the roles: a new norm only normalises."""
        return {"weight": constant(1.0), "bias": constant(0.0)}


def views(x: Tensor, norm: Norm | None, placement: NormPlacement) -> tuple[Tensor, Tensor]:
    """Return the routed and the plain view of a sublayer's input x (B, T, D)."""
    if norm is None or placement == "post":
        return x, x
    normed = norm(x)
    return normed, x if placement == "peri" else normed
