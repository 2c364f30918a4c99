"""Muon for the matrices of layers, with AdamW for all other parameters.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix by its momentum
with all singular values brought near 1. With G the gradient, M the momentum, lr the learning rate,
A and B the sides of the matrix and w the weight decay:

    M ← 0.95 M + 0.05 G;   W ← (1 - lr · w) W - lr · 0.2 · sqrt(max(A, B)) · NS(0.95 M + 0.05 G)

NS is five steps of Newton and Schulz in bfloat16. The factor gives an update the root mean square
that AdamW's has (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves both. Embeddings,
heads, norms, biases and what decides (routers, gates, halting) are left to AdamW, as are the start
and the injection of a recurrence (as in sandyresearch/parcae and epfml/looped-moe).

Single matrices are ``torch.optim.Muon``'s. It takes no stack of them, as weights of experts are:
``StackedMuon`` does the same to each matrix of a stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moeut.initialization import roles_of
from moeut.recurrence.stack import DepthStack

Groups = list[dict[str, Any]]

MOMENTUM = 0.95
STEPS = 5
"""Of Newton and Schulz."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Muon for parameters (N, A, B), each of the N matrices by itself."""

    def __init__(self, groups: Groups, *, lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one update of the parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"].lerp_(gradient, 1.0 - MOMENTUM)
                update = orthogonalized(gradient.lerp(momentum, MOMENTUM))
                factor = 0.2 * math.sqrt(max(parameter.shape[-2:]))
                parameter.mul_(1.0 - rate * decay)
                parameter.add_(update, alpha=-rate * factor)


def orthogonalized(matrices: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return each of the matrices (N, A, B) with its singular values brought near 1, in ``dtype``.

    A matrix is divided by its norm, and then X ← a X + (b G + c G²) X with G = X Xᵀ five times.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.to(dtype)
    wide = wide.mT if is_tall else wide
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = wide @ wide.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, gram, wide, beta=a)
    return wide.mT if is_tall else wide


class Together:
    """Several optimisers, each of parameters of its own, that step as one."""

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> Groups:
        """Groups of all of them, whose ``lr`` can be set."""
        return [group for each in self.optimizers.values() for group in each.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for each in self.optimizers.values():
            each.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Do one update of all parameters."""
        for each in self.optimizers.values():
            each.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each by its name."""
        return {name: each.state_dict() for name, each in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        for name, each in self.optimizers.items():
            each.load_state_dict(state[name])


def matrices_of_layers(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    """Return the parameters of a model's layers that map the states of tokens.

    They have two dimensions, or three, of which the first counts matrices.
    """
    found = set()
    for stack in model.modules():
        if not isinstance(stack, DepthStack):
            continue
        named = dict(stack.layers.named_parameters(remove_duplicate=False))
        for name, (role, _) in roles_of(stack.layers):
            if role.part in ("weight", "up") and role.is_matrix:
                found.add(named[name])
    return found


def muon_and_adamw(
    model: torch.nn.Module, groups: Groups, *, lr: float, weight_decay: float, adam: dict[str, Any]
) -> Together:
    """Return the optimisers of a model.

    Args:
        model: whose layers say which of their parameters are matrices.
        groups: its parameters that train, in groups of one learning rate.
        lr: learning rate of the matrices.
        weight_decay: theirs, which counts times the learning rate.
        adam: options of AdamW, for all other parameters.
    """
    matrices = matrices_of_layers(model)

    def chosen(*, dimensions: int | None) -> Groups:
        """Return the groups of matrices with so many dimensions; None: of what is no matrix."""
        parts = []
        for group in groups:
            kept = [
                parameter
                for parameter in group["params"]
                if (parameter.dim() if parameter in matrices else None) == dimensions
            ]
            parts += [group | {"params": kept}] if kept else []
        return parts

    single, stacked, others = (chosen(dimensions=n) for n in (2, 3, None))
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if single:
        optimizers["muon"] = torch.optim.Muon(
            single,
            lr=lr,
            weight_decay=weight_decay,
            momentum=MOMENTUM,
            ns_coefficients=COEFFICIENTS,
            eps=EPSILON,
            ns_steps=STEPS,
            adjust_lr_fn="match_rms_adamw",
        )
    if stacked:
        optimizers["stacked_muon"] = StackedMuon(stacked, lr=lr, weight_decay=weight_decay)
    optimizers["adamw"] = torch.optim.AdamW(others, **adam)
    return Together(optimizers)
