"""Gates that give each repeat a probability of being the last, and what training asks of them.

A gate reads a token's state where a repeat ends. In training every repeat runs, the loss weighs the
cross entropies of all read-outs by p, and a penalty shapes p:

=============  ==============================================================================
kind           penalty of a token
=============  ==============================================================================
``exit_gate``  -β · H(p), which keeps exits spread (Ouro, arXiv 2510.25741, first stage)
``ponder``     β · KL(p ‖ geometric prior) (PonderNet, arXiv 2107.05407, equation 3)
=============  ==============================================================================

In evaluation a token leaves where ``evaluate`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Roles, constant, linear
from moeut.blocks.routing import router_logits
from moeut.options import require, require_finite
from moeut.recurrence import exits
from moeut.recurrence.controller import Controller, ControllerOptions, Pass, Run, Step, Verdict
from moeut.recurrence.exits import ExitRun
from moeut.recurrence.schedule import Place
from moeut.recurrence.start import uniform_by_position


@dataclass(frozen=True, kw_only=True)
class GateOptions(ControllerOptions):
    """What both kinds have."""

    loss: Literal["weighted", "expected"] = "weighted"
    """What training takes: the cross entropies of all repeats, ``weighted`` by p; or the cross
    entropy of the ``expected`` logits Σ p·logits, as the code of Ouro computes where it has labels.
    """
    evaluate: Literal["threshold", "sample", "expected"] = "threshold"
    """Where a token leaves in evaluation: where p sums to ``threshold``; where a draw of
    probability λ says, which follows from position and repeat alone; or nowhere: the result is the
    ``expected`` state."""
    threshold: float = 1.0
    """Sum of p at which a token leaves; 1: at the last repeat."""
    exit_at: int | None = None
    """Repeat, from 0, after which every token leaves in evaluation, whatever its gates say."""
    halted: Literal["freeze", "update"] = "freeze"
    """What becomes of the state of a token that has left: ``freeze`` leaves it out of later
    repeats; ``update`` goes on changing it, which other tokens see, as in published code."""
    initial_bias: float = 0.0
    """Initial bias of the gate's logits; below 0, tokens begin by leaving later."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0.0 < self.threshold <= 1.0
        require(ok, "threshold", self.threshold, "must be above 0 and at most 1")
        ok = self.exit_at is None or self.exit_at >= 0
        require(ok, "exit_at", self.exit_at, "must be a whole number of at least 0")

    def penalty(self, log_p: Tensor) -> Tensor:
        """Return what training adds to the loss of each token (...), given log p (..., N)."""
        raise NotImplementedError

    def weighs_repeats(self) -> bool:
        """Return whether the loss weighs the read-outs of all repeats by p."""
        return self.loss == "weighted"

    def gives_way(self) -> bool:
        """Return that a rule may say who leaves, in the place of the gate."""
        return True

    def build(self, d_model: int) -> Controller:
        """Return the controller with its gate."""
        return GateController(self, d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of the gate for one token."""
        return d_model


@dataclass(frozen=True, kw_only=True)
class ExitGate(GateOptions):
    """Each token may leave after each repeat; in training, exits are kept spread."""

    kind: ClassVar[str] = "exit_gate"
    entropy_weight: float = 0.05
    """Price of a nat less entropy of the exits (β)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "entropy_weight")

    def penalty(self, log_p: Tensor) -> Tensor:
        """Return -β times the entropy (...) of the exits, given log p (..., N)."""
        return -self.entropy_weight * exits.entropy(log_p)


@dataclass(frozen=True, kw_only=True)
class Ponder(GateOptions):
    """Each token may leave after each repeat; in training, exits are drawn to a geometric prior."""

    kind: ClassVar[str] = "ponder"
    prior: float = 0.2
    """Probability of leaving after each repeat that the prior has (λ_p); 1/λ_p repeats are its
    mean."""
    loss_weight: float = 0.01
    """Weight of the divergence (β)."""
    divergence: Literal["to_prior", "from_prior"] = "to_prior"
    """KL(p ‖ prior), as in the paper, or KL(prior ‖ p), as labml's annotated code has it."""
    normalised_prior: bool = True
    """Whether the prior, cut off at the last repeat, sums to 1; false in labml's annotated code."""
    evaluate: Literal["threshold", "sample", "expected"] = "sample"
    """Where a token leaves in evaluation: where a draw of probability λ says, as in the paper,
    which follows from position and repeat alone; where p sums to ``threshold``; or nowhere: the
    result is the ``expected`` state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "loss_weight")
        require(0.0 < self.prior < 1.0, "prior", self.prior, "must be above 0 and below 1")

    def penalty(self, log_p: Tensor) -> Tensor:
        """Return β times the divergence (...) of the exits, given log p (..., N)."""
        n, normalised = log_p.shape[-1], self.normalised_prior
        prior = exits.geometric(self.prior, n, normalised=normalised, like=log_p)
        pair = (log_p, prior) if self.divergence == "to_prior" else (prior, log_p)
        return self.loss_weight * exits.divergence(*pair)


class GateController(Controller):
    """The gate: ``weight`` (1, D) and ``bias`` (1,)."""

    def __init__(self, options: GateOptions, d_model: int) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.empty(1, d_model))
        self.bias = nn.Parameter(torch.empty(1))

    def roles(self) -> Roles:
        """Return the roles of weight and bias."""
        return {
            "weight": linear(self.weight.shape[1], 1),
            "bias": constant(self.options.initial_bias),
        }

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, T) of states x (B, T, D), in at least float32."""
        return (router_logits(x, self.weight) + self.bias).squeeze(-1)

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        if self.training or (self.options.evaluate == "expected" and self.options.exit_at is None):
            return ExpectedRun(self, about)
        return LeavingRun(self, about)


class ExpectedRun(Run):
    """A pass through every repeat, whose result is the expected state Σ p · state."""

    def __init__(self, controller: GateController, about: Pass) -> None:
        self.controller, self.about = controller, about
        # Gates learn at every repeat, those without gradient to the layers included.
        self.with_gradient = torch.is_grad_enabled()
        self.logits: list[Tensor] = []
        self.there: Tensor | None = None  # (B, T) log probability of not having left
        self.result: Tensor | None = None

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Read the gate where a repeat ends, and add the state by its weight."""
        if place.is_last:
            with torch.set_grad_enabled(self.with_gradient):
                self._weigh(place, x)
        return x

    def _weigh(self, place: Place, x: Tensor) -> None:
        logits = self.controller.logits(x)
        self.logits.append(logits)
        log_p = torch.zeros_like(logits) if self.there is None else self.there
        if place.repeat != place.num_repeats - 1:
            self.there = log_p + nn.functional.logsigmoid(-logits)
            log_p = log_p + nn.functional.logsigmoid(logits)
        share = log_p.exp().unsqueeze(-1) * x
        self.result = share if self.result is None else self.result + share

    def finish(self, x: Tensor) -> Verdict:
        """Return the expected state, the penalty, and log p (B, T, N) as a record."""
        assert self.result is not None
        logits = torch.stack(self.logits, dim=-1)  # (B, T, N)
        log_p = exits.log_probabilities(logits)
        penalty = self.about.mean(self.controller.options.penalty(log_p))
        steps = torch.arange(1, logits.shape[-1] + 1, device=x.device, dtype=log_p.dtype)
        repeats = exits.expected(log_p.detach(), steps)
        if self.about.real is not None:
            repeats = repeats * self.about.real
        record = {"repeats": repeats, "logits": logits, "log_probability": log_p}
        return Verdict(self.result.to(x.dtype), penalty, record)


class LeavingRun(ExitRun):
    """A pass in evaluation, in which tokens leave by their gates."""

    def __init__(self, controller: GateController, about: Pass) -> None:
        super().__init__(about, freezes=controller.options.halted == "freeze")
        self.controller, self.options = controller, controller.options
        self.spent: Tensor | None = None  # (B, T) sum of p
        self.there: Tensor | None = None  # (B, T) log probability of not having left

    def leaves(self, place: Place, x: Tensor) -> Tensor:
        """Return who leaves (B, T)."""
        assert place.repeat is not None
        if self.options.exit_at is not None:
            return torch.full_like(self.running, place.repeat >= self.options.exit_at)
        if self.options.evaluate == "threshold" and self.options.threshold == 1.0:
            return torch.zeros_like(self.running)  # no sum that rounding brings to 1 counts
        logits = self.controller.logits(x)
        if self.options.evaluate == "sample":
            positions = self.about.positions.expand(logits.shape)
            drawn = uniform_by_position(positions, salt=place.repeat + 1, like=logits)
            return drawn < logits.sigmoid()
        there = torch.zeros_like(logits) if self.there is None else self.there
        p = (there + nn.functional.logsigmoid(logits)).exp()
        self.there = there + nn.functional.logsigmoid(-logits)
        self.spent = p if self.spent is None else self.spent + p
        return self.spent >= self.options.threshold
