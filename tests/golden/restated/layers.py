"""Parts that published models share, each written out from its equation, in float64.

Nothing here is from ``moeut``: these are what its readers are compared with where no golden file
has an option.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def draws(config: Mapping[str, Any]) -> torch.Generator:
    """Return a generator whose seed is a function of the config."""
    return torch.Generator().manual_seed(zlib.crc32(json.dumps(config, sort_keys=True).encode()))


def normal(generator: torch.Generator, *shape: int, std: float = 1.0) -> Tensor:
    """Return float64 numbers of a normal distribution."""
    return std * torch.randn(shape, generator=generator, dtype=torch.float64)


def weights(generator: torch.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Return random weights; norms are near one and biases away from zero."""
    made = {}
    for name, shape in shapes.items():
        is_norm = len(shape) == 1 and name.rpartition(".")[2] != "bias"
        std = 0.2 if len(shape) == 1 else 0.8 * shape[-1] ** -0.5
        made[name] = normal(generator, *shape, std=std) + (1.0 if is_norm else 0.0)
    return made


def leaves(parameters: Tensors) -> Tensors:
    """Return copies that gradients arrive at."""
    return {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}


def gradients(loss: Tensor, parameters: Tensors, *, prefix: str) -> Tensors:
    """Return the gradients of a loss as a golden file names them, without those that are none."""
    found = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, retain_graph=True
    )
    return {
        f"{prefix}.{name}": gradient
        for name, gradient in zip(parameters, found, strict=True)
        if gradient is not None
    }


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Return what is called ``prefix.*``, without the prefix."""
    start = prefix + "."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def rms(x: Tensor, weight: Tensor | float = 1.0, epsilon: float = 1e-5) -> Tensor:
    """x / sqrt(mean of squares + epsilon) · weight."""
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) · weight + bias."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight + bias


def silu(x: Tensor) -> Tensor:
    """x σ(x)."""
    return x * x.sigmoid()


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), exactly."""
    return 0.5 * x * (1.0 + torch.erf(x / 2.0**0.5))


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GPT-2."""
    inside = (2.0 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + inside.tanh())


ACTIVATIONS = {
    "GELU": gelu,
    "SiLU": silu,
    "ReLU": torch.relu,
    "ReLU2": lambda x: 0.5 * x.relu().square(),
}


def heads(x: Tensor, count: int) -> Tensor:
    """(B, T, H·d) to (B, H, T, d)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def rotary(
    x: Tensor, *, base: float, pairs: bool = False, positions: Tensor | None = None
) -> Tensor:
    """Rotate x (B, H, T, d), channel i with i + d/2, or 2i with 2i + 1; positions are (B, T)."""
    size = x.shape[-1]
    rates = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    steps = torch.arange(x.shape[-2]) if positions is None else positions.unsqueeze(1)
    angles = steps.double().unsqueeze(-1) * rates
    cos, sin = angles.cos(), angles.sin()
    if pairs:
        first, second = x[..., ::2], x[..., 1::2]
        turned = (first * cos - second * sin, first * sin + second * cos)
        return torch.stack(turned, dim=-1).flatten(-2)
    first, second = x[..., : size // 2], x[..., size // 2 :]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(q·k / sqrt(d) + bias) v as (B, T, H·d); fewer heads of keys are repeated in place."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(later, -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax at each target; 0 where it is negative."""
    chosen = targets.clamp_min(0).unsqueeze(-1)
    return -logits.log_softmax(-1).gather(-1, chosen).squeeze(-1) * (targets >= 0)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross entropy of each next token."""
    return cross_entropies(logits[:, :-1], tokens[:, 1:]).mean()


def absent(parameters: Iterable[str], computed: Tensors, prefix: str) -> list[str]:
    """Return the parameters that a loss has no gradient for."""
    return [name for name in parameters if f"{prefix}.{name}" not in computed]
