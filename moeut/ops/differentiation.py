"""Make an operator differentiable by another one, which computes all gradients that are needed.

An operator registered through ``torch.library`` takes flat arguments; its backward operator takes

    (gradient of the output, inputs of the forward, outputs kept for backward, needs)

and returns one gradient for each input that has any. ``needs`` says which of them are asked for;
the others are empty tensors, since an operator cannot return None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def register_gradient(
    operator: CustomOpDef, backward: CustomOpDef, *, wanted: Sequence[int], num_inputs: int
) -> None:
    """Let ``backward`` compute the gradients of ``operator``, once differentiable.

    ``wanted`` are the positions of the inputs that have a gradient, in the order of what
    ``backward`` returns; it reads the first ``num_inputs`` inputs, and all outputs but the first,
    which are not differentiable.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        read = inputs[:num_inputs]
        kept = output[1:] if isinstance(output, tuple) else ()
        # Options are no tensors and travel beside them; an input that is None is among them.
        ctx.options = [None if isinstance(one, Tensor) else (one,) for one in (*read, *kept)]
        ctx.save_for_backward(*(one for one in (*read, *kept) if isinstance(one, Tensor)))
        ctx.num_all_inputs = len(inputs)

    def differentiate(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        read = [next(tensors) if option is None else option[0] for option in ctx.options]
        needs = [ctx.needs_input_grad[position] for position in wanted]
        gradients = backward(grad, *read, needs)
        by_position: list[Tensor | None] = [None] * ctx.num_all_inputs
        for position, gradient, need in zip(wanted, gradients, needs, strict=True):
            by_position[position] = gradient if need else None
        return tuple(by_position)

    def fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        needs = arguments[-1]
        return tuple(
            grad.new_empty(arguments[position].shape if need else 0)
            for position, need in zip(wanted, needs, strict=True)
        )

    operator.register_autograd(differentiate, setup_context=setup_context)
    backward.register_fake(fake)


def only_needed(gradients: Sequence[Tensor | None], needs: Sequence[bool], like: Tensor) -> Any:
    """Return gradients, of any shapes, as a backward operator has to: empty if not needed."""
    pairs = zip(gradients, needs, strict=True)
    return tuple(one if need and one is not None else like.new_empty(0) for one, need in pairs)


def drop_unneeded(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Return gradients, of any shapes, as autograd wants them: None if not needed."""
    return [one if need else None for one, need in zip(gradients, needs, strict=True)]


def needs_gradient(*inputs: Tensor | None) -> bool:
    """Return whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in inputs)
