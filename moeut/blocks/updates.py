"""How a sublayer's output becomes the next state: the residual update, and where gates would go.

A layer asks its update twice: after attention (and cross-attention) for the state between its
sublayers, and after the feed-forward for its own result, which may look back at the state that the
layer started from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from moeut.blocks.norms import Norm
from moeut.options import Options


class Update(nn.Module):
    """The residual update; a kind of its own overrides what it does otherwise."""

    def between(self, x: Tensor, change: Tensor, norm: Norm | None) -> Tensor:
        """Return the state (B, T, D) after an attention that read x and gave ``change``.

        ``norm`` is the sublayer's norm where it stands behind (``norm: post``), else None.
        """
        x = x + change
        return x if norm is None else norm(x)

    def last(self, start: Tensor, x: Tensor, change: Tensor, norm: Norm | None) -> Tensor:
        """Return the layer's result (B, T, D); the feed-forward read x, the layer ``start``."""
        return self.between(x, change, norm)


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(Options):
    """What every kind of update has."""

    def build(self, d_model: int) -> Update:
        """Return the module of one layer, for states of width ``d_model``."""
        raise NotImplementedError

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of one layer for one token."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Residual(UpdateOptions):
    """The output of every sublayer is added to its input."""

    kind: ClassVar[str] = "residual"

    def build(self, d_model: int) -> Update:
        """Return the update, which has no parameters."""
        return Update()


UPDATE: Mapping[str, type[UpdateOptions]] = {"residual": Residual}
