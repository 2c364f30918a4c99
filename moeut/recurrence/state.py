"""The state of a recurrence: what it begins from, what enters each repeat, what leaves it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from moeut.blocks.feed_forward import FeedForwardOptions
from moeut.blocks.roles import Role, Roles, constant
from moeut.blocks.routing import RoutingContext
from moeut.ops import linear
from moeut.options import Options, one_of, require
from moeut.recurrence.controller import Controller, Pass, Run, Step
from moeut.recurrence.injection import INJECTION, Injection, NoInjection
from moeut.recurrence.schedule import Depth, Place
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
    before: Literal["repeat", "layer"] = "repeat"
    """Whether the input enters before each repeat, or before each of its layers by a rule of the
    layer's own (mcleish7/arithmetic)."""
    output: Literal["none", "final_norm", "linear", "feed_forward"] = "none"
    """What the last state goes through before the coda: nothing; the final norm, which then stands
    in two places (arXiv 2502.05171), or without a coda twice in one, where it changes little; a
    projection of its own (sandyresearch/parcae); or a feed-forward like that of a layer, alone
    (arXiv 2405.17399)."""
    output_bias: bool = False
    """Whether ``output: linear`` has a bias."""

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
        has_bias = self.output == "linear" or not self.output_bias
        require(has_bias, "output_bias", self.output_bias, "has no effect without output=linear")
        enters = self.before == "repeat" or not isinstance(self.injection, NoInjection)
        require(enters, "before", self.before, "has no effect without an injection")

    @property
    def is_plain(self) -> bool:
        """Whether the recurrence is a plain loop: it starts from the input and nothing enters."""
        return isinstance(self.start, InputStart) and isinstance(self.injection, NoInjection)

    def build(self, width: int, input_width: int, depth: Depth) -> Controller | None:
        """Return the controller for these widths of state and input; None for a plain loop."""
        return None if self.is_plain else InjectionController(self, width, input_width, depth)

    def build_output(
        self, width: int, d_model: int, feed_forward: FeedForwardOptions
    ) -> nn.Module | None:
        """Return what the last state, of ``width``, goes through; None: nothing of its own."""
        if self.output == "linear":
            return OutputProjection(width, d_model, bias=self.output_bias)
        return OutputFeedForward(feed_forward, d_model) if self.output == "feed_forward" else None

    def macs(self, width: int, input_width: int, depth: Depth) -> int:
        """Return the multiply-accumulates of one repeat for one token."""
        times = depth.group if self.before == "layer" else 1
        return self.injection.macs(width, input_width) * times

    def output_macs(self, width: int, d_model: int, feed_forward: FeedForwardOptions) -> int:
        """Return the multiply-accumulates for one token after all repeats."""
        costs = {"linear": width * d_model, "feed_forward": feed_forward.macs(d_model)}
        return costs.get(self.output, 0)


class OutputProjection(nn.Module):
    """Maps the last state by ``weight`` (D, width), which begins as the identity, and a bias."""

    def __init__(self, width: int, d_model: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, width))
        self.bias = nn.Parameter(torch.empty(d_model)) if bias else None

    def roles(self) -> Roles:
        """Return the roles of weight and bias."""
        roles = {"weight": Role("identity")}
        return roles if self.bias is None else roles | {"bias": constant(0.0)}

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        """Return C x (B, T, D), in the dtype of the state; nothing is routed."""
        return linear(x, self.weight, self.bias).to(x.dtype)


class OutputFeedForward(nn.Module):
    """Maps the last state by a feed-forward, in place of the state.

    If it has experts, they have no share in the balance loss: the layers' alone is one of routers
    that are used again and again.
    """

    def __init__(self, options: FeedForwardOptions, d_model: int) -> None:
        super().__init__()
        self.feed_forward = options.build(d_model)

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        """Return the feed-forward of x (B, T, D), in the dtype of the state."""
        alone = replace(context, balance=False, trace=False)
        return self.feed_forward(x, x, alone)[0].to(x.dtype)


class InjectionController(Controller):
    """Starts the state and feeds the input in again before each repeat."""

    def __init__(self, options: State, width: int, input_width: int, depth: Depth) -> None:
        super().__init__()
        self.options, self.width, self.first = options, width, depth.prelude
        if options.before == "layer":
            rules = (options.injection.build(width, input_width) for _ in range(depth.group))
            self.rules = nn.ModuleList(rules)
        else:
            self.rule = options.injection.build(width, input_width)

    def rule_at(self, place: Place) -> nn.Module | None:
        """Return by what the input enters at a place; None: it does not."""
        if self.options.before == "layer":
            return self.rules[place.layer - self.first]
        return self.rule if place.is_first else None

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
        start, width = controller.options.start, controller.width
        return start.state(self.about, width, training=controller.training)

    def before(self, place: Place, step: Step) -> Step:
        """Inject the input where a repeat, or an application, begins."""
        rule = self.controller.rule_at(place)
        return step if rule is None else step._replace(x=rule(step.x, self.about.embedded))
