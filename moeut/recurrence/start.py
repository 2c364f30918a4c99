"""What the first repeat begins from.

========  ======================================================================================
start     the first state
========  ======================================================================================
``input``  the embedded input itself
``zero``   zeros
``noise``  random numbers, of which every token of every training pass gets its own
========  ======================================================================================

The noise of published recurrent-depth models (seal-rg/recurrent-pretraining,
mcleish7/arithmetic) differs in its ``shape``:

=============  =================================================================================
shape          a channel of a token, with D channels
=============  =================================================================================
``normal``     N(1)
``embed``      N(1 / sqrt(D))
``like_init``  N(sqrt(2 / 5D)) cut at three deviations, times the factor on embeddings: as the
               embeddings of arXiv 2502.05171 begin
``unit``       N(1), then each token's channels brought to mean 0 and deviation 1
=============  =================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moeut.options import Options, require
from moeut.recurrence.controller import Pass

CUT = 3.0
"""Standard deviations at which ``like_init`` is cut."""


@dataclass(frozen=True, kw_only=True)
class Start(Options):
    """What the first repeat begins from."""

    def state(self, about: Pass, width: int, *, training: bool) -> Tensor:
        """Return the first state (B, T, ``width``)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class InputStart(Start):
    """The embedded input itself."""

    kind: ClassVar[str] = "input"

    def state(self, about: Pass, width: int, *, training: bool) -> Tensor:
        """Return the embedded input (B, T, D)."""
        return about.embedded


@dataclass(frozen=True, kw_only=True)
class ZeroStart(Start):
    """Zeros; the input reaches the state through the injection alone."""

    kind: ClassVar[str] = "zero"

    def state(self, about: Pass, width: int, *, training: bool) -> Tensor:
        """Return zeros (B, T, ``width``)."""
        return about.embedded.new_zeros(*about.embedded.shape[:2], width)


@dataclass(frozen=True, kw_only=True)
class NoiseStart(Start):
    """Normal noise, another one in every training pass (arXiv 2502.05171).

    Outside training the noise of a token depends on its position alone: the same token gets the
    same noise whatever the batch, the padding, and whether a cache is used.
    """

    kind: ClassVar[str] = "noise"
    deviation: float = 1.0
    """Factor on the noise; of shape normal its standard deviation."""
    shape: Literal["normal", "embed", "like_init", "unit"] = "normal"
    """Distribution of a token's channels: normal N(1); embed N(1/sqrt(D)); like_init
    N(sqrt(2/5D)) cut at three deviations, times the factor on embeddings; unit N(1), then brought
    to mean 0 and deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0.0 < self.deviation < math.inf
        require(ok, "deviation", self.deviation, "must be a finite number above 0")

    def state(self, about: Pass, width: int, *, training: bool) -> Tensor:
        """Return noise (B, T, ``width``), in training seeded by PyTorch's global generator."""
        batch, length = about.embedded.shape[:2]
        noise = noise_by_position(
            about.positions.expand(batch, length),
            width,
            training=training,
            cut=self.shape == "like_init",
        )
        if self.shape == "unit":
            deviation, mean = torch.std_mean(noise, dim=-1, keepdim=True)
            noise = (noise - mean) / deviation
        return (noise * self._factor(width, about.embedding_factor)).to(about.embedded.dtype)

    def _factor(self, width: int, embedding_factor: float) -> float:
        factors = {
            "embed": 1.0 / math.sqrt(width),
            "like_init": math.sqrt(2.0 / (5.0 * width)) * embedding_factor,
        }
        return self.deviation * factors.get(self.shape, 1.0)


START: Mapping[str, type[Start]] = {"input": InputStart, "zero": ZeroStart, "noise": NoiseStart}


def noise_by_position(
    positions: Tensor, width: int, *, training: bool, salt: int = 0, cut: bool = False
) -> Tensor:
    """Return float32 normal noise (B, T, width) for tokens at ``positions`` (B, T).

    In training each row has noise of its own, seeded by PyTorch's global generator. Outside, noise
    depends on position, channel and ``salt`` alone. ``cut``: as ``cut_noise`` has it.
    """
    batch, device = positions.shape[0], positions.device
    seed = torch.full((), salt, dtype=torch.int64, device=device)
    rows = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    if training:
        # Drawn where the global generator lives, so that ranks and resumed runs agree with it.
        seed = torch.randint(1, 2**62, ()).to(device)
        rows = torch.arange(1, batch + 1, device=device).unsqueeze(1)
    draw = cut_noise if cut else position_noise
    return draw(positions, rows, seed, width)


def uniform_by_position(
    positions: Tensor, *, salt: int, like: Tensor, training: bool = False
) -> Tensor:
    """Return uniform numbers (B, T) in the dtype of ``like``, made as ``noise_by_position`` is."""
    noise = noise_by_position(positions, 1, training=training, salt=salt).squeeze(-1)
    return torch.special.ndtr(noise.to(like.dtype))


# Operators that the compiler leaves whole: fused into a larger graph, PyTorch 2.13's Inductor
# computes other hashes on a CPU, and says nothing.
@torch.library.custom_op("moeut::position_noise", mutates_args=())
def position_noise(positions: Tensor, rows: Tensor, seed: Tensor, width: int) -> Tensor:
    """Return float32 standard normal numbers (B, T, width), each a function of where it stands.

    A number depends on its position (B, T), the number of its row (B, 1), ``seed`` () and its
    channel, by a counter-based generator: two hashes give the uniform numbers of a Box–Muller
    transform. No generator keeps a state, so no number depends on how many others are drawn.
    """
    first, second = _uniforms(positions, rows, seed, 2 * width).chunk(2, dim=-1)
    return (-2.0 * first.log()).sqrt() * (2.0 * math.pi * second).cos()


@position_noise.register_fake
def _(positions, rows, seed, width):
    return positions.new_empty(*positions.shape, width, dtype=torch.float32)


@torch.library.custom_op("moeut::cut_noise", mutates_args=())
def cut_noise(positions: Tensor, rows: Tensor, seed: Tensor, width: int) -> Tensor:
    """Return float32 numbers (B, T, width) of N(1) cut at ``CUT``, as ``position_noise`` does.

    One hash gives a uniform number, of which the quantile is taken.
    """
    uniform = _uniforms(positions, rows, seed, width)
    inside = math.erf(CUT / math.sqrt(2.0))  # the share of N(1) within the cut
    return math.sqrt(2.0) * torch.erfinv((2.0 * uniform - 1.0) * inside)


@cut_noise.register_fake
def _(positions, rows, seed, width):
    return positions.new_empty(*positions.shape, width, dtype=torch.float32)


def _uniforms(positions: Tensor, rows: Tensor, seed: Tensor, width: int) -> Tensor:
    """Return float32 numbers in (0, 1), (B, T, width)."""
    key = _mix(_mix(seed + 0x2545F4914F6CDD1D) ^ rows)
    key = _mix(key ^ _mix(positions + 1)).unsqueeze(-1)  # (B, T, 1)
    channels = torch.arange(1, width + 1, device=positions.device)
    return _uniform(_mix(key ^ _mix(channels)))


def _mix(x: Tensor) -> Tensor:
    """Return the finaliser of splitmix64 of each int64; products wrap around, as they should."""
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    # The shift of a signed number copies its sign; a shift of an unsigned one is meant.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(x: Tensor) -> Tensor:
    """Return float32 numbers in (0, 1), from the upper 24 bits of each int64."""
    return (_shifted(x, 40).float() + 0.5) * 2.0**-24
