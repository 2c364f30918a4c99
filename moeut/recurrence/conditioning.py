"""Conditioning on depth: what tells one repeat of the shared layers from another.

With t the number of the repeat, from 0, and x (B, T, D) what it reads:

=================  =============================================================================
conditioning       what a repeat does
=================  =============================================================================
``none``           x, and nothing tells repeats apart
``coordinates``    x + P(position) + P(t), P the sinusoids of Tensor2Tensor (arXiv 1807.03819);
                   P(t) may be a learned vector instead, and the sum W [x; P(position); P(t)]
``vectors``        x + a learned vector of t
``network``        x + W₂ silu(W₁ s + b₁) + b₂, s the sinusoids of t
                   (seal-rg/recurrent-pretraining at 59e0b69)
``film``           x · (1 + scale_t) + shift_t
``adaptive_norm``  the same of what each sublayer reads, behind its norm (DiT, arXiv 2212.09748;
                   marin-community/marin at 68c0217)
=================  =============================================================================

``coordinates`` and ``vectors`` come before halting decides and belong to the state; the others come
after the injection. Repeats beyond the last learned vector take the last. ``vectors``, ``film`` and
``adaptive_norm`` begin as zeros: a new model is the one without. A factor on what each repeat gives
is ``own.encoding``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut import ops
from moeut.blocks.roles import Role, Roles, constant, linear
from moeut.options import require, require_positive
from moeut.recurrence.controller import Controller, ControllerOptions, Pass, Run, Step
from moeut.recurrence.schedule import Place


@dataclass(frozen=True, kw_only=True)
class Conditioning(ControllerOptions):
    """What tells one repeat from another."""

    comes_first: ClassVar[bool] = False
    """Whether it changes the state itself, before halting decides and the input enters."""
    decides_at_repeats: ClassVar[bool] = True
    """Whether it acts where a repeat begins, and not in each application alike."""

    @property
    def tells_order(self) -> bool:
        """Whether it says where a token stands."""
        return False

    def build_for(self, d_model: int, repeats: int) -> Controller | None:
        """Return the module, for states of width ``d_model`` and as many configured ``repeats``."""
        return None


@dataclass(frozen=True, kw_only=True)
class NoConditioning(Conditioning):
    """Nothing tells repeats apart."""

    kind: ClassVar[str] = "none"
    decides_at_repeats: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Coordinates(Conditioning):
    """Signals of the position and of the repeat are added to the state before each repeat."""

    kind: ClassVar[str] = "coordinates"
    comes_first: ClassVar[bool] = True
    positions: bool = True
    """Whether the sinusoid of the position is added."""
    steps: Literal["sinusoid", "learned", "none"] = "sinusoid"
    """What says the repeat: a sinusoid; or a learned vector that begins as normal noise, as in
    Tensor2Tensor."""
    size: int | None = None
    """Learned vectors; null: as many as repeats are configured."""
    combine: Literal["add", "concatenate"] = "add"
    """How signals enter: added to the state; or put beside it, each in its width, before a
    projection back to that width."""
    shift: Literal["none", "random"] = "none"
    """What is added to the positions of a row in training: nothing, or a random number below its
    length, as Tensor2Tensor draws for a whole batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "size")
        said = "has no effect without positions"
        require(self.positions or self.shift == "none", "shift", self.shift, said)
        said = "has no effect without steps=learned"
        require(self.size is None or self.steps == "learned", "size", self.size, said)
        said = "nothing is left to add; expected sinusoid or learned"
        require(self.positions or self.steps != "none", "steps", self.steps, said)

    @property
    def tells_order(self) -> bool:
        """Whether it says where a token stands."""
        return self.positions

    def build_for(self, d_model: int, repeats: int) -> Controller:
        """Return the controller: its parameters are learned vectors, and the projection."""
        return CoordinatesController(self, d_model, self.size or repeats)

    @property
    def num_signals(self) -> int:
        """How many signals enter."""
        return self.positions + (self.steps != "none")

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of the projection for one token and repeat."""
        return (1 + self.num_signals) * d_model**2 if self.combine == "concatenate" else 0


@dataclass(frozen=True, kw_only=True)
class _Tabled(Conditioning):
    """Base of the kinds that learn something for each repeat."""

    size: int | None = None
    """Repeats that something is learned for; null: as many as are configured. Deeper ones take the
    last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "size")


@dataclass(frozen=True, kw_only=True)
class Vectors(_Tabled):
    """A learned vector of the repeat is added to the state."""

    kind: ClassVar[str] = "vectors"
    comes_first: ClassVar[bool] = True

    def build_for(self, d_model: int, repeats: int) -> Controller:
        """Return the controller with its table (size, D)."""
        return VectorsController((self.size or repeats, d_model))


@dataclass(frozen=True, kw_only=True)
class Network(Conditioning):
    """A small network of the sinusoids of the repeat is added to what the repeat reads."""

    kind: ClassVar[str] = "network"
    frequencies: int = 128
    """Sinusoids, each of which gives a cosine and a sine; the fastest has frequency 1, and the
    slowest nearly 1/10000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "frequencies")

    def build_for(self, d_model: int, repeats: int) -> Controller:
        """Return the controller with its network."""
        return NetworkController(self, d_model)


@dataclass(frozen=True, kw_only=True)
class Film(_Tabled):
    """What a repeat reads is scaled and shifted, channel by channel."""

    kind: ClassVar[str] = "film"

    def build_for(self, d_model: int, repeats: int) -> Controller:
        """Return the controller with its table (size, 2, D)."""
        return FilmController((self.size or repeats, 2, d_model))


@dataclass(frozen=True, kw_only=True)
class AdaptiveNorm(_Tabled):
    """What each sublayer of a repeat reads is scaled and shifted, behind its norm."""

    kind: ClassVar[str] = "adaptive_norm"
    decides_at_repeats: ClassVar[bool] = False

    def build_for(self, d_model: int, repeats: int) -> Controller:
        """Return the controller with its table (size, 2, D), one pair for all layers."""
        return AdaptiveNormController((self.size or repeats, 2, d_model))


CONDITIONING: Mapping[str, type[Conditioning]] = {
    "none": NoConditioning,
    "coordinates": Coordinates,
    "vectors": Vectors,
    "network": Network,
    "film": Film,
    "adaptive_norm": AdaptiveNorm,
}


# --- modules ----------------------------------------------------------------------------


class DepthController(Controller):
    """Base of what changes the state by the number of the repeat alone."""

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        return DepthRun(self, about)

    def before(self, step: Step, place: Place, about: Pass) -> Step:
        """Return what the first application of a repeat reads."""
        return step

    def modulation(self, step: Step, place: Place) -> tuple[Tensor, Tensor] | None:
        """Return scale and shift of what every sublayer of a repeat reads; None: it is as it is."""
        return None


class DepthRun(Run):
    """One pass of a ``DepthController``."""

    def __init__(self, controller: DepthController, about: Pass) -> None:
        self.controller, self.about = controller, about

    def before(self, place: Place, step: Step) -> Step:
        """Condition what the repeat reads where it begins, and what its sublayers read."""
        pair = self.controller.modulation(step, place)
        if pair is not None:
            step = step._replace(modulation=pair)
        return self.controller.before(step, place, self.about) if place.is_first else step


class TableController(DepthController):
    """A learned entry for each repeat: ``table`` (repeats, …)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(shape))

    def roles(self) -> Roles:
        """Return the role of the table: a new model is as if it were not there."""
        return {"table": constant(0.0)}

    def entry(self, step: Step, place: Place) -> Tensor:
        """Return the entry of a repeat (…), or of that of each token (B, T, …)."""
        assert place.repeat is not None
        last = len(self.table) - 1
        if step.number is None:
            return self.table[min(place.repeat, last)]
        return self.table[step.number.clamp(max=last)]


class VectorsController(TableController):
    """A learned vector of the repeat is added."""

    def before(self, step: Step, place: Place, about: Pass) -> Step:
        """Return the step with x + vector (B, T, D)."""
        return step._replace(x=step.x + self.entry(step, place))


class FilmController(TableController):
    """A learned scale and shift of the repeat."""

    def before(self, step: Step, place: Place, about: Pass) -> Step:
        """Return the step with x · (1 + scale) + shift (B, T, D)."""
        scale, shift = self.entry(step, place).unbind(dim=-2)
        return step._replace(x=step.x * (1.0 + scale) + shift)


class AdaptiveNormController(TableController):
    """A learned scale and shift of what every sublayer of the repeat reads."""

    def modulation(self, step: Step, place: Place) -> tuple[Tensor, Tensor]:
        """Return scale and shift (D) or (B, T, D)."""
        scale, shift = self.entry(step, place).unbind(dim=-2)
        return scale, shift


class CoordinatesController(DepthController):
    """The sinusoids of Tensor2Tensor, or learned vectors ``table`` (size, D) for the repeat.

    Put beside the state, ``weight`` (D, D + signals · D) brings them back to its width.
    """

    def __init__(self, options: Coordinates, d_model: int, size: int) -> None:
        super().__init__()
        self.options = options
        if options.steps == "learned":
            self.table = nn.Parameter(torch.empty(size, d_model))
        if options.combine == "concatenate":
            inputs = (1 + options.num_signals) * d_model
            self.weight = nn.Parameter(torch.empty(d_model, inputs))

    def roles(self) -> Roles:
        """Return the role of the learned vectors, which are used times sqrt(D), and the weight."""
        roles = {}
        if self.options.steps == "learned":
            roles["table"] = Role("embedding", self.table.shape[1], len(self.table))
        if self.options.combine == "concatenate":
            roles["weight"] = Role("mix", self.weight.shape[1], len(self.weight))
        return roles

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass, in which the positions of each row may be shifted."""
        if self.training and self.options.shift == "random":
            about = about._replace(positions=about.positions + _shifts(about))
        return DepthRun(self, about)

    def before(self, step: Step, place: Place, about: Pass) -> Step:
        """Return the step with x + P(position) + P(repeat), or W of all three (B, T, D)."""
        assert place.repeat is not None
        x, width = step.x, step.x.shape[-1]
        number = step.number
        if number is None:
            number = torch.full((), place.repeat, device=x.device)
        signals = []
        if self.options.positions:
            signals.append(timing_signal(about.positions, width, x.dtype))
        if self.options.steps == "sinusoid":
            signals.append(timing_signal(number, width, x.dtype))
        elif self.options.steps == "learned":
            signals.append(self.table[number.clamp(max=len(self.table) - 1)] * math.sqrt(width))
        if self.options.combine == "concatenate":
            beside = [signal.to(x.dtype).expand_as(x) for signal in signals]
            x = ops.linear(torch.cat((x, *beside), dim=-1), self.weight).to(x.dtype)
        else:
            for signal in signals:
                x = x + signal
        return step._replace(x=x)


def _shifts(about: Pass) -> Tensor:
    """Return a random number (B, 1) below the length of each row, from PyTorch's generator."""
    rows, columns = about.embedded.shape[:2]
    device = about.embedded.device
    length = torch.full((rows, 1), columns, device=device)
    if about.real is not None:
        length = about.real.sum(dim=1, keepdim=True)
    return (torch.rand(rows, 1, device=device) * length).long()


def timing_signal(numbers: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the sinusoids (…, width) of whole ``numbers`` (…), all sines before all cosines.

    The last of the W = width // 2 frequencies is exactly 1/10000: ω_i = 10000^(-i / (W - 1)). An
    odd width ends with a zero (tensorflow/tensor2tensor at 0405ed1, get_timing_signal_1d).
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    count = width // 2
    steps = torch.arange(count, device=numbers.device, dtype=exact)
    angles = numbers.unsqueeze(-1) * (-math.log(10000.0) / max(count - 1, 1) * steps).exp()
    signal = torch.cat((angles.sin(), angles.cos()), dim=-1)
    return F.pad(signal, (0, width % 2)).to(dtype)


class NetworkController(DepthController):
    """The network: ``up`` (D, 2·frequencies) and ``down`` (D, D), both with a bias (D)."""

    def __init__(self, options: Network, d_model: int) -> None:
        super().__init__()
        self.frequencies = options.frequencies
        self.up = nn.Parameter(torch.empty(d_model, 2 * options.frequencies))
        self.up_bias = nn.Parameter(torch.empty(d_model))
        self.down = nn.Parameter(torch.empty(d_model, d_model))
        self.down_bias = nn.Parameter(torch.empty(d_model))

    def roles(self) -> Roles:
        """Return the roles of weights and biases."""
        d_model, inputs = self.up.shape
        return {
            "up": linear(inputs, d_model),
            "up_bias": Role("bias", inputs),
            "down": linear(d_model, d_model),
            "down_bias": Role("bias", d_model),
        }

    def before(self, step: Step, place: Place, about: Pass) -> Step:
        """Return the step with x + network(repeat) (B, T, D)."""
        assert place.repeat is not None
        number = step.number
        if number is None:
            number = torch.full((), place.repeat, device=step.x.device)
        # The rates are float32 in the code that they are from, whatever the model's precision.
        rates = torch.arange(self.frequencies, dtype=torch.float32, device=number.device)
        rates = (-math.log(10000.0) * rates / self.frequencies).exp()
        exact = torch.float64 if self.up.dtype == torch.float64 else torch.float32
        angles = number.unsqueeze(-1).to(exact) * rates
        inputs = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.up.dtype)
        hidden = F.silu(ops.linear(inputs, self.up, self.up_bias))
        signal = ops.linear(hidden, self.down, self.down_bias)
        return step._replace(x=step.x + signal.to(step.x.dtype))
