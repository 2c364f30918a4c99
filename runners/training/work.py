"""What one rank computes of a step, apart from how: batches, depths, and what losses count for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from runners.training.batches import Batch, to_device
from runners.training.criterion import Where

Number = float | torch.Tensor
"""A number that the host knows, or one () on the device."""


@dataclass(frozen=True)
class Part:
    """A batch to accumulate."""

    batch: Batch
    where: Where
    call: dict[str, Any]
    """Keyword arguments of the model for its depth."""
    share: Number
    """Share of the step's rows, which its auxiliary loss counts for."""


@dataclass(frozen=True)
class Work:
    """The parts of a step."""

    parts: list[Part]
    divisor: Number
    """Targets of the whole batch, or its rows: what the cross entropy is averaged over."""
    drawn: tuple[int, ...] = ()
    """Numbers that the criterion has drawn for the step."""

    def on(self, device: torch.device) -> Work:
        """Return the same work with its numbers on a device, in float64."""
        numbers = np.array([self.divisor, *(part.share for part in self.parts)])
        divisor, *shares = to_device(numbers, device).unbind()
        pairs = zip(self.parts, shares, strict=True)
        parts = [dataclasses.replace(part, share=share) for part, share in pairs]
        return dataclasses.replace(self, parts=parts, divisor=divisor)

    def key(self) -> tuple[Any, ...]:
        """Return all that decides which operations a step is: two steps of one key differ only in
        the values of their tensors.
        """
        of_parts = (
            (
                tuple((n, tuple(t.shape), t.dtype) for n, t in part.batch.tensors.items()),
                part.where.counts,
                tuple(sorted(part.call.items())),
            )
            for part in self.parts
        )
        return (*of_parts, self.drawn)

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor that the step reads besides the model, in a fixed order.

        The numbers have to be on a device.
        """
        found = [self.divisor, *(part.share for part in self.parts)]
        for part in self.parts:
            found += part.batch.tensors.values()
        return found  # type: ignore[return-value]

    def copied(self) -> Work:
        """Return the same work on tensors of its own."""
        parts = []
        for part in self.parts:
            tensors = {name: tensor.clone() for name, tensor in part.batch.tensors.items()}
            batch = dataclasses.replace(part.batch, tensors=tensors)
            parts.append(dataclasses.replace(part, batch=batch, share=_clone(part.share)))
        return dataclasses.replace(self, parts=parts, divisor=_clone(self.divisor))


class Gradients(NamedTuple):
    """What a step knows of its gradients, which the parameters have."""

    losses: torch.Tensor
    """(2,) the cross entropy and the auxiliary loss of the whole batch."""
    norm: torch.Tensor
    """() norm of all gradients together."""


def like(number: Number, tensor: torch.Tensor) -> Number:
    """Return a number to multiply or divide a scalar tensor by, without changing its dtype."""
    return number.to(tensor.dtype) if isinstance(number, torch.Tensor) else number


def _clone(number: Number) -> torch.Tensor:
    assert isinstance(number, torch.Tensor), "numbers of the host cannot be replaced in a graph"
    return number.clone()
