"""Draw the tensors that competitors compute on from a fixed seed."""

from __future__ import annotations

import torch
from torch import Tensor


class Draw:
    """Draw trainable tensors on a device, activations of one dtype and weights of another."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, weight_dtype: torch.dtype | None = None
    ) -> None:
        self.device, self.dtype, self.weight_dtype = device, dtype, weight_dtype or dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def activations(self, *shape: int) -> Tensor:
        """Return activations of a shape, from a standard normal distribution."""
        return self._normal(shape, 1.0).to(self.dtype).requires_grad_()

    def weight(self, *shape: int, scale: float) -> Tensor:
        """Return a weight of a shape, from a normal distribution of standard deviation scale."""
        return self._normal(shape, scale).to(self.weight_dtype).requires_grad_()

    def router(self, rows: int, num_experts: int, top_k: int) -> tuple[Tensor, Tensor]:
        """Return gates and experts, (rows, top_k) each, every expert equally likely."""
        scores = self._normal((rows, num_experts), 1.0).sigmoid()
        gate, index = scores.topk(top_k, sorted=False)
        return gate.to(self.weight_dtype).requires_grad_(), index

    def _normal(self, shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).mul_(scale)
