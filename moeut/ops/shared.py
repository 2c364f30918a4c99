"""Expert weights that one pass uses many times: cast once, their gradients added up in place.

A layer applied nine times would otherwise cast its float32 weights nine times under autocast and
keep every copy for backward; and it would write nine gradients in low precision, convert each to
float32 and add it to the sum of the others. Here the copy is made once a pass, and each application
adds its gradient, in float32, to the buffer that the applications after it have filled.

The buffer needs no state of its own: it travels as the gradient of a *carrier*, a tensor of the
weight's shape without memory that each application takes and hands on to the next,

    weight → carrier → application 1 → carrier → application 2 → … → application n

so that backward, which goes the other way, brings to each application the sum of those behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from moeut.ops.backend import compute_dtype, resolve_backend


class SharedWeight:
    """One expert weight (E, M, N) as the applications of one pass use it.

    ``expert_linear`` and ``expert_mlp`` take it in place of the parameter. It belongs to one
    forward pass and must not outlive an update of the parameter.
    """

    def __init__(self, parameter: Tensor, dtype: torch.dtype) -> None:
        self.parameter = parameter
        self.value = parameter.detach().to(dtype).contiguous()
        """(E, M, N) the weight in the dtype to compute in, which the products read."""
        needs_gradient = torch.is_grad_enabled() and parameter.requires_grad
        self.carrier: Tensor | None = _Begin.apply(parameter) if needs_gradient else None
        """(E, M, N) without memory; its gradient is the sum so far. None: no gradient is needed."""


class SharedWeights:
    """The shared weights of one pass, by parameter; a parameter that is not shared is itself."""

    def __init__(self, weights: Iterable[SharedWeight] = ()) -> None:
        self._shared = {id(weight.parameter): weight for weight in weights}
        self._stacked: dict[tuple[int, ...], tuple[tuple[Tensor, ...], Tensor]] = {}

    def __getitem__(self, parameter: Tensor) -> Tensor | SharedWeight:
        return self._shared.get(id(parameter), parameter)

    def stacked(self, *parameters: Tensor) -> Tensor:
        """Return dense weights (N, D) one below the other: made once in a pass without gradient."""
        key = tuple(map(id, parameters))
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.cat(parameters)
        if key not in self._stacked:
            # With them kept, no other tensor can come to have the identity of one that is gone.
            self._stacked[key] = parameters, torch.cat(parameters)
        return self._stacked[key][1]

    @classmethod
    def for_pass(cls, parameters: Iterable[nn.Parameter], like: Tensor) -> SharedWeights:
        """Prepare the expert weights of a pass over states like ``like``, where that serves.

        That is where Triton computes them; a compiled graph merges equal casts by itself, and
        parameters in pieces (FSDP) are whole only inside their own module.
        """
        if torch.compiler.is_compiling():
            return cls()
        dtype = compute_dtype(like)
        whole = [one for one in parameters if not hasattr(one, "device_mesh")]
        if not whole or resolve_backend("auto", like.device, dtype) != "triton":
            return cls()
        return cls(SharedWeight(parameter, dtype) for parameter in whole)


class _Begin(torch.autograd.Function):
    """Begin a carrier of a parameter, which receives the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        ctx.dtype = parameter.dtype
        return new_carrier(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.to(ctx.dtype)


def new_carrier(like: Tensor) -> Tensor:
    """Return a float32 tensor of a weight's shape (E, M, N) whose elements share one address."""
    return torch.empty((), dtype=torch.float32, device=like.device).expand(like.shape)


def parameter_of(weight: Tensor | SharedWeight) -> Tensor:
    """Return the parameter (E, M, N) behind a weight that may be shared."""
    return weight.parameter if isinstance(weight, SharedWeight) else weight
