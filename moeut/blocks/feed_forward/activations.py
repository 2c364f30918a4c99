"""Functions between the layers of a feed-forward, by the names that options call them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "squared_relu", "half_squared_relu"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _half_squared_relu(x: Tensor) -> Tensor:
    return 0.5 * F.relu(x).square()


ACTIVATION: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
    "squared_relu": _squared_relu,
    "half_squared_relu": _half_squared_relu,
}
