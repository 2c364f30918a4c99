"""The state of a recurrence: what it begins from, what enters each repeat, what leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Role, Roles
from moeut.ops import linear
from moeut.options import Options, one_of, require
from moeut.recurrence.controller import Controller, Pass, Run, Step
from moeut.recurrence.injection import INJECTION, Injection, NoInjection
from moeut.recurrence.schedule import Place
from moeut.recurrence.start import START, InputStart, Start


@dataclass(frozen=True, kw_only=True)
class State(Options):
    """What the recurrence begins from, and what enters each repeat."""

    start: Start = one_of(START, InputStart)
    """What the first repeat begins from."""
    injection: Injection = one_of(INJECTION, NoInjection)
    """How the embedded input enters each repeat."""
    norm_input: bool = False
    """Norm on the embedded input after the prelude, before it enters anything (Parcae)."""
    output: Literal["none", "final_norm", "linear"] = "none"
    """What the last state goes through before the coda: nothing; the final norm, which then stands
    in two places (arXiv 2502.05171); or a projection of its own (sandyresearch/parcae)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        reaches = isinstance(self.start, InputStart) or not isinstance(self.injection, NoInjection)
        kinds = ", ".join(kind for kind in INJECTION if kind != "none")
        require(
            reaches,
            "injection",
            self.injection.kind,
            f"start={self.start.kind} needs an injection ({kinds}), since nothing else "
            "brings the input to the state",
        )

    @property
    def is_plain(self) -> bool:
        """Whether the recurrence is a plain loop: it starts from the input and nothing enters."""
        return isinstance(self.start, InputStart) and isinstance(self.injection, NoInjection)

    def build(self, d_model: int) -> Controller | None:
        """Return the controller; None for a plain loop."""
        return None if self.is_plain else InjectionController(self, d_model)

    def build_output(self, d_model: int) -> nn.Module | None:
        """Return the projection of the last state; None: it has none of its own."""
        return OutputProjection(d_model) if self.output == "linear" else None

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of one repeat for one token."""
        return self.injection.macs(d_model)

    def output_macs(self, d_model: int) -> int:
        """Return the multiply-accumulates for one token after all repeats."""
        return d_model * d_model if self.output == "linear" else 0


class OutputProjection(nn.Module):
    """Maps the last state by ``weight`` (D, D), which begins as the identity."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, d_model))

    def roles(self) -> Roles:
        """Return the role of the weight."""
        return {"weight": Role("identity")}

    def forward(self, x: Tensor) -> Tensor:
        """Return C x (B, T, D), in the dtype of the state."""
        return linear(x, self.weight).to(x.dtype)


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
