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
``StackedMuon`` does the same to each matrix of a stack. Where weights are cut in pieces, one on
each rank, a piece of a stack is whole matrices, but one of a matrix is some of its rows, which
``ShardedMuon`` brings together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
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
    """Muon for parameters (N, A, B), each of the N matrices by itself.

    A sharded parameter is cut between its matrices, so each rank moves its own.
    """

    def __init__(self, groups: Groups, *, lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one update of the parameters that have a gradient."""
        assert closure is None
        for parameter, group in _with_gradient(self):
            ahead = _ahead(parameter.grad, self.state[parameter])
            _move(parameter, orthogonalized(ahead), group)


class ShardedMuon(torch.optim.Muon):
    """Muon for matrices (A, B) of which each rank has some rows, and keeps the momentum of these.

    The numbers, and what is kept, are those of ``torch.optim.Muon``. Given the pieces, that would
    gather a matrix in each of its products, all of which every rank would do.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one update of the parameters that have a gradient, the same ones on every rank."""
        assert closure is None
        moved = list(_with_gradient(self))
        if not moved:
            return
        mesh = moved[0][0].device_mesh
        for first in range(0, len(moved), mesh.size()):
            turn = moved[first : first + mesh.size()]
            aheads = [_ahead(parameter.grad, self.state[parameter]) for parameter, _ in turn]
            heights = [len(parameter) for parameter, _ in turn]
            updates = orthogonalized_pieces(aheads, heights, mesh.get_group())
            for (parameter, group), update in zip(turn, updates, strict=True):
                _move(parameter, update, group)


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the parameters that have a gradient, with their groups."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield parameter, group


def _ahead(gradient: Any, state: dict[str, Any]) -> Tensor:
    """Add a gradient to the momentum in ``state``; return this rank's part of 0.95 M + 0.05 G."""
    if not state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    own = _own(gradient)
    momentum = _own(state["momentum_buffer"]).lerp_(own, 1.0 - MOMENTUM)
    return own.lerp(momentum, MOMENTUM)


def _move(parameter: Any, update: Tensor, group: dict[str, Any]) -> None:
    """Move this rank's part of a parameter by an orthogonalised update, and let it decay."""
    rate, own = group["lr"], _own(parameter)
    factor = 0.2 * math.sqrt(max(parameter.shape[-2:]))
    own.mul_(1.0 - rate * group["weight_decay"])
    own.add_(update, alpha=-rate * factor)


def _own(tensor: Any) -> Tensor:
    """Return what this rank has of a tensor: all of it, or its piece, in the same memory."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def orthogonalized(matrices: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return matrices with their singular values brought near 1, in ``dtype``.

    A matrix is divided by its norm, and then X ← a X + (b G + c G²) X with G = X Xᵀ five times.

    Args:
        matrices: one (A, B), to the bits of ``torch.optim.Muon``; or several (N, A, B).
        dtype: of the products.
    """
    a, b, c = COEFFICIENTS
    add_product = torch.addmm if matrices.dim() == 2 else torch.baddbmm
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.to(dtype)
    wide = wide.mT if is_tall else wide
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = wide @ wide.mT
        gram = add_product(gram, gram, gram, beta=b, alpha=c)
        wide = add_product(wide, gram, wide, beta=a)
    return wide.mT if is_tall else wide


def orthogonalized_pieces(pieces: list[Tensor], heights: list[int], group: Any) -> list[Tensor]:
    """Return this rank's rows of several matrices, at most one a rank, orthogonalised whole.

    The rank with the number of a matrix gets its rows from all, and sends back theirs. They travel
    in bfloat16, in which the products are.

    Args:
        pieces: this rank's rows of each matrix (rows, B), maybe none.
        heights: the rows A of each whole matrix.
        group: the ranks, which all have to call it with the same matrices.
    """
    rank, size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    own = torch.cat([piece.to(torch.bfloat16).flatten() for piece in pieces])
    own_sizes = [piece.numel() for piece in pieces] + [0] * (size - len(pieces))
    sizes = [0] * size
    if rank < len(pieces):
        width = pieces[rank].shape[1]
        sizes = [rows * width for rows in _rows_of_ranks(heights[rank], size)]
    whole = own.new_empty(sum(sizes))
    torch.distributed.all_to_all_single(whole, own, sizes, own_sizes, group=group)
    if rank < len(pieces):
        whole = orthogonalized(whole.view(heights[rank], width)).flatten()
    torch.distributed.all_to_all_single(own, whole, own_sizes, sizes, group=group)
    parts = own.split(own_sizes[: len(pieces)])
    return [part.view_as(piece) for part, piece in zip(parts, pieces, strict=True)]


def _rows_of_ranks(height: int, size: int) -> list[int]:
    """Return how many rows of a matrix each rank has: as ``torch.chunk`` cuts, the last maybe 0."""
    most = -(-height // size)
    return [max(0, min(most, height - rank * most)) for rank in range(size)]


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
        is_sharded = hasattr(single[0]["params"][0], "to_local")
        optimizers["muon"] = (ShardedMuon if is_sharded else torch.optim.Muon)(
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
