"""Where the recurrence begins, and how the embedded input enters each repeat.

With e the embedded input after the prelude and s the state, repeat r computes

    s₀ = start(e),    s ← group(inject(s, e))

============  ===================================================================================
injection     inject(s, e)
============  ===================================================================================
``none``      s
``add``       s + e (arXiv 2409.15647)
``linear``    W [s; e], state first, W of D × 2D without bias (arXiv 2502.05171)
============  ===================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Role, Roles
from moeut.options import Options, one_of, require
from moeut.recurrence.controller import Controller, Pass, Run, Step
from moeut.recurrence.schedule import Place

# --- start ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Start(Options):
    """What the first repeat begins from."""

    def state(self, about: Pass, *, training: bool) -> Tensor:
        """Return the first state (B, T, D)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class InputStart(Start):
    """The embedded input itself."""

    kind: ClassVar[str] = "input"

    def state(self, about: Pass, *, training: bool) -> Tensor:
        """Return the embedded input (B, T, D)."""
        return about.embedded


@dataclass(frozen=True, kw_only=True)
class ZeroStart(Start):
    """Zeros; the input reaches the state through the injection alone."""

    kind: ClassVar[str] = "zero"

    def state(self, about: Pass, *, training: bool) -> Tensor:
        """Return zeros (B, T, D)."""
        return torch.zeros_like(about.embedded)


@dataclass(frozen=True, kw_only=True)
class NoiseStart(Start):
    """Normal noise, another one in every training pass (arXiv 2502.05171).

    Outside training the noise of a token depends on its position alone: the same token gets the
    same noise whatever the batch, the padding, and whether a cache is used.
    """

    kind: ClassVar[str] = "noise"
    deviation: float = 1.0
    """Standard deviation of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0.0 < self.deviation < math.inf
        require(ok, "deviation", self.deviation, "must be a finite number above 0")

    def state(self, about: Pass, *, training: bool) -> Tensor:
        """Return noise (B, T, D), in training seeded by PyTorch's global generator."""
        batch, length, width = about.embedded.shape
        noise = noise_by_position(about.positions.expand(batch, length), width, training=training)
        return (noise * self.deviation).to(about.embedded.dtype)


START: Mapping[str, type[Start]] = {"input": InputStart, "zero": ZeroStart, "noise": NoiseStart}


def noise_by_position(positions: Tensor, width: int, *, training: bool, salt: int = 0) -> Tensor:
    """Return float32 normal noise (B, T, width) for tokens at ``positions`` (B, T).

    In training each row has noise of its own, seeded by PyTorch's global generator. Outside, noise
    depends on position, channel and ``salt`` alone.
    """
    batch, device = positions.shape[0], positions.device
    seed = torch.full((), salt, dtype=torch.int64, device=device)
    rows = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    if training:
        # Drawn where the global generator lives, so that ranks and resumed runs agree with it.
        seed = torch.randint(1, 2**62, ()).to(device)
        rows = torch.arange(1, batch + 1, device=device).unsqueeze(1)
    return position_noise(positions, rows, seed, width)


# An operator that the compiler leaves whole: fused into a larger graph, PyTorch 2.13's Inductor
# computes other hashes on a CPU, and says nothing.
@torch.library.custom_op("moeut::position_noise", mutates_args=())
def position_noise(positions: Tensor, rows: Tensor, seed: Tensor, width: int) -> Tensor:
    """Return float32 standard normal numbers (B, T, width), each a function of where it stands.

    A number depends on its position (B, T), the number of its row (B, 1), ``seed`` () and its
    channel, by a counter-based generator: two hashes give the uniform numbers of a Box–Muller
    transform. No generator keeps a state, so no number depends on how many others are drawn.
    """
    key = _mix(_mix(seed + 0x2545F4914F6CDD1D) ^ rows)
    key = _mix(key ^ _mix(positions + 1)).unsqueeze(-1)  # (B, T, 1)
    channels = torch.arange(1, 2 * width + 1, device=positions.device)
    first, second = _uniform(_mix(key ^ _mix(channels))).chunk(2, dim=-1)
    return (-2.0 * first.log()).sqrt() * (2.0 * math.pi * second).cos()


@position_noise.register_fake
def _(positions, rows, seed, width):
    return positions.new_empty(*positions.shape, width, dtype=torch.float32)


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


# --- injection --------------------------------------------------------------------------


class NoInjectionRule(nn.Module):
    """The input enters nowhere but at the start."""

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return the state (B, T, D)."""
        return state


class AddRule(nn.Module):
    """The input is added to the state."""

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return state + input (B, T, D)."""
        return state + embedded


class LinearRule(nn.Module):
    """State and input, side by side, through one projection ``weight`` (D, 2D)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, 2 * d_model))

    def roles(self) -> Roles:
        """Return the role of the projection."""
        d_model, both = self.weight.shape
        return {"weight": Role("mix", both, d_model)}

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Return W [state; input] (B, T, D), in the dtype of the state."""
        both = torch.cat((state, embedded), dim=-1)
        # Autocast gives a product in bfloat16; layers would then add up the state itself in that.
        return nn.functional.linear(both, self.weight).to(state.dtype)


@dataclass(frozen=True, kw_only=True)
class Injection(Options):
    """How the embedded input enters each repeat."""

    def build(self, d_model: int) -> nn.Module:
        """Return the module that maps state and input (B, T, D) to what the group reads."""
        raise NotImplementedError

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of one repeat for one token."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NoInjection(Injection):
    """The input enters nowhere but at the start."""

    kind: ClassVar[str] = "none"

    def build(self, d_model: int) -> nn.Module:
        """Return the module, which has no parameters."""
        return NoInjectionRule()


@dataclass(frozen=True, kw_only=True)
class AddInjection(Injection):
    """The input is added to the state before each repeat."""

    kind: ClassVar[str] = "add"

    def build(self, d_model: int) -> nn.Module:
        """Return the module, which has no parameters."""
        return AddRule()


@dataclass(frozen=True, kw_only=True)
class LinearInjection(Injection):
    """State and input go through one projection before each repeat, state first."""

    kind: ClassVar[str] = "linear"

    def build(self, d_model: int) -> nn.Module:
        """Return the module with its projection (D, 2D)."""
        return LinearRule(d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of the projection for one token."""
        return 2 * d_model * d_model


INJECTION: Mapping[str, type[Injection]] = {
    "none": NoInjection,
    "add": AddInjection,
    "linear": LinearInjection,
}


# --- the controller ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class State(Options):
    """What the recurrence begins from, and what enters each repeat."""

    start: Start = one_of(START, InputStart)
    """What the first repeat begins from."""
    injection: Injection = one_of(INJECTION, NoInjection)
    """How the embedded input enters each repeat."""

    def __post_init__(self) -> None:
        super().__post_init__()
        reaches = isinstance(self.start, InputStart) or not isinstance(self.injection, NoInjection)
        require(
            reaches,
            "injection",
            self.injection.kind,
            f"start={self.start.kind} needs an injection (add or linear), since nothing else "
            "brings the input to the state",
        )

    @property
    def is_plain(self) -> bool:
        """Whether the recurrence is a plain loop: it starts from the input and nothing enters."""
        return isinstance(self.start, InputStart) and isinstance(self.injection, NoInjection)

    def build(self, d_model: int) -> Controller | None:
        """Return the controller; None for a plain loop."""
        return None if self.is_plain else InjectionController(self, d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of one repeat for one token."""
        return self.injection.macs(d_model)


class InjectionController(Controller):
    """Starts the state and feeds the input in again before each repeat."""

    def __init__(self, options: State, d_model: int) -> None:
        super().__init__()
        self.options = options
        self.rule = options.injection.build(d_model)

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        return InjectionRun(self, about)


class InjectionRun(Run):
    """One pass of an ``InjectionController``."""

    def __init__(self, controller: InjectionController, about: Pass) -> None:
        self.controller, self.about = controller, about

    def start(self, x: Tensor) -> Tensor:
        """Return the first state (B, T, D)."""
        controller = self.controller
        return controller.options.start.state(self.about, training=controller.training)

    def before(self, place: Place, step: Step) -> Step:
        """Inject the input where a repeat begins."""
        if not place.is_first:
            return step
        return step._replace(x=self.controller.rule(step.x, self.about.embedded))
