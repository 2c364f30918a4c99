"""Stick-breaking halting, of the Sparse Universal Transformer (arXiv 2310.07096).

Halting is decided before each application of a layer but the first, from the state h that the one
before it gave. With i = 1, 2, … the number of the decision, s the stick that is left (1 at first),
and a = σ(gate(h)) of two logits,

    p_i = a · s,    s ← (1 - a) · s,    m ← m + p_i · h        what has halted, and its mean state
    h ← layer(h, keys and values from y),    y ← m + s · h     y is read, and is the result

A token has halted once s falls below 1 - threshold: it takes part in nothing, and y stays. The loss
is the mean over tokens of the expected depth so far, Σ_i (i - 1) · p_i + s · i, summed over the
decisions. So no state is thrown away, and what others read of a token moves less and less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.roles import Role, Roles
from moeut.ops import Linear, linear
from moeut.options import require, require_finite
from moeut.recurrence.controller import Controller, ControllerOptions, Pass, Run, Step, Verdict
from moeut.recurrence.schedule import Depth, Place


@dataclass(frozen=True, kw_only=True)
class StickBreaking(ControllerOptions):
    """Each token breaks off a part of what is left of it before each layer, until little is."""

    kind: ClassVar[str] = "stick_breaking"
    chooses_keys: ClassVar[bool] = True
    decides_each_application: ClassVar[bool] = True
    threshold: float = 0.999
    """Sum of the parts at which a token halts."""
    loss_weight: float = 0.01
    """Weight of the expected depth."""
    halted: Literal["freeze", "update"] = "freeze"
    """What becomes of the state of a token that has halted, from which its depth in the loss goes
    on being computed: ``freeze`` leaves it; ``update`` norms it as layers do, as published code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "loss_weight")
        ok = 0.0 < self.threshold <= 1.0
        require(ok, "threshold", self.threshold, "must be above 0 and at most 1")

    def build_in(self, d_model: int, depth: Depth) -> Controller:
        """Return the controller, with a gate for each layer of the group."""
        return StickBreakingController(self, d_model, depth.group)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of a gate for one token."""
        return d_model * (d_model + 2)


class Gate(nn.Module):
    """Two dense layers, ``up`` (D, D) and ``down`` (2, D); the first logit is for going on."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = Linear(d_model, d_model)
        self.down = Linear(d_model, 2, bias=False)

    def roles(self) -> Roles:
        """Return the roles of the gate's weights."""
        d_model = self.up.in_features
        return {
            "up.weight": Role("up", d_model, d_model),
            "up.bias": Role("bias", d_model),
            "down.weight": Role("weight", d_model, 2),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms (B, T) of what goes on and of what halts, of states x (B, T, D)."""
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.up.weight.to(exact), self.up.bias.to(exact)
            hidden = F.gelu(linear(x.to(exact), weight, bias))
            logits = linear(hidden, self.down.weight.to(exact))
        goes_on, halts = logits.log_softmax(dim=-1).unbind(dim=-1)
        return goes_on, halts


class StickBreakingController(Controller):
    """The gates, one for each layer of the group."""

    def __init__(self, options: StickBreaking, d_model: int, group: int) -> None:
        super().__init__()
        self.options, self.group = options, group
        self.gates = nn.ModuleList(Gate(d_model) for _ in range(group))

    def log_shares(self, x: Tensor, place: Place, first_layer: int) -> tuple[Tensor, Tensor]:
        """Return the logarithms (B, T) of what goes on and of what halts before a layer."""
        gate: tuple[Tensor, Tensor] = self.gates[place.layer - first_layer](x)
        return gate

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        return StickBreakingRun(self, about)


class StickBreakingRun(Run):
    """One pass; sums are (B, T)."""

    def __init__(self, controller: StickBreakingController, about: Pass) -> None:
        self.controller, self.options, self.about = controller, controller.options, about
        self.with_gradient = torch.is_grad_enabled()
        x = about.embedded
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        zeros = x.new_zeros(x.shape[:2], dtype=exact)
        ones = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        self.active = ones if about.real is None else about.real
        self.was_active: dict[int, Tensor] = {}  # by layer, at its latest application
        self.log_left = self.depth = zeros
        self.left = zeros + 1
        self.taken = zeros
        self.decisions = 0
        self.losses: list[Tensor] = []
        self.first_layer: int | None = None
        self.state: Tensor | None = None  # (B, T, D) h
        self.halted: Tensor | None = None  # (B, T, D) m
        self.output: Tensor | None = None  # (B, T, D) y

    def before(self, place: Place, step: Step) -> Step | None:
        """Break off a part of each token, and leave out those of which little is left."""
        if self.first_layer is None:
            self.first_layer = place.layer
        if self.state is None:
            self.taken = self.taken + self.active
            self.was_active[place.layer] = self.active
            return step
        with torch.set_grad_enabled(self.with_gradient):
            self._break_off(place)
        # In training the loss goes on summing up depths.
        may_end = self.about.may_end and not self.controller.training
        if may_end and not bool(self.active.any()):
            return None
        self.taken = self.taken + self.active
        source = self.output
        assert source is not None
        if step.x is not self.state:  # what was added to the state, such as coordinates
            source = source + (step.x - self.state)
        # What others read of a token has moved since the layer read it last, if it took part then.
        moved = self.was_active.get(place.layer, self.active)
        self.was_active[place.layer] = self.active
        active = self.active if step.active is None else step.active & self.active
        return step._replace(
            active=active,
            key_value_source=source,
            source_active=moved,
            freezes=self.options.halted == "freeze",
            keep=self.left,
        )

    def _break_off(self, place: Place) -> None:
        assert self.state is not None
        assert self.first_layer is not None
        goes_on, halts = self.controller.log_shares(self.state, place, self.first_layer)
        part = (self.log_left + halts).exp()
        self.log_left = self.log_left + goes_on
        share = part.unsqueeze(-1) * self.state
        self.halted = share if self.halted is None else self.halted + share
        self.depth = self.depth + self.decisions * part
        self.decisions += 1
        left = self.log_left.exp()
        self.active = self.active & (left >= 1.0 - self.options.threshold)
        self.left = left * self.active

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Mix the new state with what has halted; it is what others read next."""
        self.state = x
        if self.halted is None or self.output is None:
            self.output = x
            return x
        with torch.set_grad_enabled(self.with_gradient):
            mixed = self.halted + self.left.unsqueeze(-1) * x
            self.output = torch.where(self.active.unsqueeze(-1), mixed, self.output).to(x.dtype)
            self.losses.append(self.about.mean(self.depth + self.left * self.decisions))
        return x

    def finish(self, x: Tensor) -> Verdict:
        """Return what is read last, the loss, and the repeats that each token took (B, T)."""
        assert self.output is not None
        loss = None
        if self.losses:
            loss = torch.stack(self.losses).sum() * self.options.loss_weight
        repeats = self.taken / self.controller.group
        return Verdict(self.output, loss, {"repeats": repeats, "left": self.left})
