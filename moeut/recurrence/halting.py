"""Halting: which tokens later repeats still work on.

``act`` is adaptive computation time (arXiv 1603.08983) per token, as the Universal Transformer
(arXiv 1807.03819) and the Neural Data Router's code (arXiv 2110.07732) have it. With h the state
before repeat i, p = σ(w·h + b) and H the probability spent so far,

    the token halts at i      if H + p > threshold, and at the last repeat
    its weight at i is        p while it goes on, 1 - H where it halts, 0 after that
    the result is             Σ_i weight_i · h_{i+1}

so the weights of a token sum to 1. The remainder 1 - H where it halts is the loss, or the whole
ponder cost: remainder plus repeats. What published codes do otherwise, in our options:

- Neural Data Router: ``halted: update, loss_over: all, accumulator: float32``, and for its
  ``act.ut_variant`` also ``average: running``;
- Universal-Transformer-Pytorch: ``halted: update, average: running, threshold: 0.9,
  loss_over: all, cost: ponder_without_gradient``;
- Tensor2Tensor: ``halted: update, loss_over: all, cost: ponder, initial_bias: 1.0`` and for its
  type ``basic`` ``average: running`` as meant, ``average: tensor2tensor`` as published;
  ``accumulated`` is ``average: sum, halts_at_end: false``; ``global`` and ``random`` have the
  average of ``basic`` with ``decides: row`` and ``decides: chance``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from moeut.blocks.roles import Roles, constant, linear
from moeut.blocks.routing import router_logits
from moeut.options import OptionError, derived, require_finite
from moeut.recurrence.controller import (
    Controller,
    ControllerOptions,
    Pass,
    Run,
    Step,
    Verdict,
)
from moeut.recurrence.schedule import Place
from moeut.recurrence.start import uniform_by_position


@dataclass(frozen=True, kw_only=True)
class AdaptiveComputationTime(ControllerOptions):
    """Each token halts when the probabilities that it gave to halting come near 1."""

    kind: ClassVar[str] = "act"
    threshold: float = 0.99
    """Probability spent at which a token halts."""
    loss_weight: float = 0.01
    """Weight of the mean remainder, the price of going on."""
    halted: Literal["freeze", "update"] = "freeze"
    """What becomes of a halted token's state: ``freeze`` leaves it out of later repeats; ``update``
    goes on changing it, which other tokens see, as the Neural Data Router's code does."""
    average: Literal["sum", "running", "tensor2tensor"] = "sum"
    """``running`` multiplies the result by 1 - weight before each addition, as the Universal
    Transformer's code means to; ``tensor2tensor`` takes the weight itself from each channel of the
    result instead, as a pair of brackets left out of that code has it; ``sum`` is the formula
    above."""
    loss_over: Literal["real", "all"] = "real"
    """Tokens that the mean of the loss is over, ``real`` row by row; ``all`` counts padding, as
    published code does, so that the loss of a row depends on the batch it is in."""
    accumulator: Literal["exact", "float32"] = "exact"
    """Precision of the sums of probability; ``exact``: float64 in a float64 model, else float32."""
    initial_bias: float = 0.0
    """Initial bias of the halting logit; below 0, tokens begin by going on for longer."""
    cost: Literal["remainder", "ponder", "ponder_without_gradient"] = "remainder"
    """What the loss is the mean of: the ``remainder`` alone; ``ponder`` adds the number of repeats,
    which has no gradient; ``ponder_without_gradient`` has none at all, as in
    Universal-Transformer-Pytorch, so that it trains nothing."""
    halts_at_end: bool = derived()
    """Whether a token that still runs halts at the last repeat, so that its weights add up to 1;
    left out: with ``average: sum`` alone."""
    decides: Literal["token", "row", "chance"] = "token"
    """By what p a token halts: its own; the mean over the tokens of its ``row``, which then halt
    together; or a uniform number drawn by ``chance``, in evaluation one that follows from position
    and repeat."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "loss_weight")
        if not 0.0 < self.threshold <= 1.0:
            raise OptionError("threshold", self.threshold, "must be above 0 and at most 1")
        if self.halts_at_end is None:
            object.__setattr__(self, "halts_at_end", self.average == "sum")

    def looks_ahead(self) -> str | None:
        """Return why a stack that looks back alone cannot have this halting; None: it can."""
        if self.decides == "row":
            return "a row that halts as one halts by tokens that are yet to be predicted"
        return None

    def build(self, d_model: int) -> Controller:
        """Return the controller with its halting unit."""
        return ActController(self, d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of the halting unit for one token."""
        return 0 if self.decides == "chance" else d_model


class ActController(Controller):
    """The halting unit: ``weight`` (1, D) and ``bias`` (1,), none where chance decides."""

    def __init__(self, options: AdaptiveComputationTime, d_model: int) -> None:
        super().__init__()
        self.options = options
        if options.decides != "chance":
            self.weight = nn.Parameter(torch.empty(1, d_model))
            self.bias = nn.Parameter(torch.empty(1))

    def roles(self) -> Roles:
        """Return the roles of weight and bias."""
        if self.options.decides == "chance":
            return {}
        return {
            "weight": linear(self.weight.shape[1], 1),
            "bias": constant(self.options.initial_bias),
        }

    def probability(self, x: Tensor, place: Place, about: Pass) -> Tensor:
        """Return the probability (B, T) of halting, in float32 or, of float64 states, float64."""
        if self.options.decides == "chance":
            assert place.repeat is not None
            exact = torch.float64 if x.dtype == torch.float64 else torch.float32
            return uniform_by_position(
                about.positions.expand(x.shape[:2]),
                salt=place.repeat + 1,
                like=x.new_empty(0, dtype=exact),
                training=self.training,
            )
        p = (router_logits(x, self.weight) + self.bias).sigmoid().squeeze(-1)
        if self.options.decides == "token":
            return p
        real = torch.ones_like(p) if about.real is None else about.real.to(p.dtype)
        count = real.sum(dim=1, keepdim=True).clamp_min(1)
        return ((p * real).sum(dim=1, keepdim=True) / count).expand_as(p)

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        return ActRun(self, about)


class ActRun(Run):
    """One pass of adaptive computation time; all sums are (B, T)."""

    def __init__(self, controller: ActController, about: Pass) -> None:
        self.controller, self.options, self.about = controller, controller.options, about
        # The halting unit learns at every repeat, those without gradient to the layers included.
        self.with_gradient = torch.is_grad_enabled()
        x = about.embedded
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.dtype = exact if self.options.accumulator == "exact" else torch.float32
        # Padding has halted before it begins: it has no weight in the result, and no remainder.
        zeros = x.new_zeros(x.shape[:2], dtype=self.dtype)
        self.spent = zeros if about.real is None else (~about.real).to(self.dtype)
        self.remainder = self.repeats = zeros
        self.weight: Tensor = zeros
        self.result: Tensor | None = None
        self.running: Tensor | None = None

    def before(self, place: Place, step: Step) -> Step | None:
        """Decide, where a repeat begins, who takes part in it and what it will weigh."""
        if place.is_first:
            running = self.spent < 1.0
            # Of tokens that are updated, routers go on balancing the load in training.
            is_spare = self.options.halted == "freeze" or not self.controller.training
            may_end = self.about.may_end and bool(place.repeat) and is_spare
            if may_end and not bool(running.any()):
                return None
            with torch.set_grad_enabled(self.with_gradient):
                self._decide(step.x, running, place)
        if self.options.halted == "update":
            return step
        assert self.running is not None
        active = self.running if step.active is None else step.active & self.running
        return step._replace(active=active)

    def _decide(self, x: Tensor, running: Tensor, place: Place) -> None:
        p = self.controller.probability(x, place, self.about)
        # No gradient flows through who halts, only through the probabilities.
        going = running.to(self.dtype)
        stops = self.spent + p * going > self.options.threshold
        is_final = place.repeat == place.num_repeats - 1
        if is_final and self.options.halts_at_end:
            stops = torch.ones_like(stops)
        halts = stops.to(self.dtype) * going
        going = (~stops).to(self.dtype) * going
        self.spent = (self.spent + p * going).to(self.dtype)
        self.remainder = self.remainder + halts * (1 - self.spent)
        self.spent = self.spent + halts * self.remainder
        self.weight = p * going + halts * self.remainder
        self.repeats = self.repeats + running.to(self.dtype)
        self.running = running

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Add the state, where a repeat ends, to the result by its weight."""
        if place.is_last:
            with torch.set_grad_enabled(self.with_gradient):
                self._add(x)
        return x

    def _add(self, x: Tensor) -> None:
        weight = self.weight.unsqueeze(-1)
        result = self.result
        if self.options.average == "tensor2tensor":
            result = -weight if result is None else result - weight
        elif result is not None and self.options.average == "running":
            result = result * (1 - weight)
        self.result = weight * x if result is None else result + weight * x

    def finish(self, x: Tensor) -> Verdict:
        """Return the weighted sum of states, the loss, and the repeats each token took (B, T)."""
        assert self.result is not None
        cost = self.remainder
        if self.options.cost != "remainder":
            cost = cost + self.repeats
        mean = self.about.mean(cost, padding=self.options.loss_over == "all")
        if self.options.cost == "ponder_without_gradient":
            mean = mean.detach()
        return Verdict(
            self.result.to(x.dtype),
            mean * self.options.loss_weight,
            {"repeats": self.repeats, "remainder": self.remainder},
        )
