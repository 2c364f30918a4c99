"""Exits that need no training: in evaluation, a token leaves once a repeat changes it by little.

A rule measures each token after each repeat n, given its state h_n and the logits that it is read
out as, with H the entropy and p the softmax of the logits. The criteria and their thresholds are
those of a published recurrent-depth model (arXiv 2502.05171, seal-rg/recurrent-pretraining at
59e0b69), which takes them once for a row; here each token has its own.

====================  ===============================================  =========================
criterion             measure                                          leaves
====================  ===============================================  =========================
``entropy_diff``      |H_n - H_{n-1}|, H_0 = 100                        below 1e-3
``latent_diff``       ‖h_n - h_{n-1}‖ / ‖h_n‖                          below 0.03
``cosine``            1 - cos(h_n, h_{n-1})                            below 1e-3
``kl``                KL(p_{n-1} ‖ p_n), p_0 uniform                   below 1e-3
``min_p_kl``          the same where p below a tenth of its largest     below 1e-5
                      is 1/V, normalised again
``argmax_stability``  repeats without another likeliest token           at least 5
====================  ===============================================  =========================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moeut.options import OptionError, Options, derived, require
from moeut.recurrence.controller import Pass, Step
from moeut.recurrence.exits import ExitRun
from moeut.recurrence.schedule import Place

Criterion = Literal["entropy_diff", "latent_diff", "cosine", "kl", "min_p_kl", "argmax_stability"]

THRESHOLDS: dict[Criterion, float] = {
    "entropy_diff": 1e-3,
    "latent_diff": 0.03,
    "cosine": 1e-3,
    "kl": 1e-3,
    "min_p_kl": 1e-5,
    "argmax_stability": 5.0,
}
"""Published thresholds by criterion."""

MIN_P = 0.1
"""Part of the largest probability below which ``min_p_kl`` levels one."""


@dataclass(frozen=True, kw_only=True)
class ExitRule(Options):
    """When a token leaves in evaluation."""

    criterion: Criterion
    """What is measured."""
    threshold: float = derived()
    """Measure below which a token leaves, or from which on with ``argmax_stability``; left out: the
    published one."""
    halted: Literal["freeze", "update"] = "freeze"
    """What becomes of the state of a token that has left: ``freeze`` leaves it out of later
    repeats; ``update`` goes on changing it, which other tokens see."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is None:
            object.__setattr__(self, "threshold", THRESHOLDS[self.criterion])
        require(self.threshold >= 0.0, "threshold", self.threshold, "must be at least 0")

    @classmethod
    def parse(cls, text: str) -> ExitRule:
        """Read ``kl``, or ``kl=1e-4`` with a threshold.

        Raises:
            OptionError: no such criterion, or no such threshold.
        """
        name, separator, number = text.partition("=")
        if not separator:
            return cls(criterion=name)  # type: ignore[arg-type]
        try:
            threshold = float(number)
        except ValueError:
            raise OptionError("threshold", number, "expected a number") from None
        return cls(criterion=name, threshold=threshold)  # type: ignore[arg-type]

    @property
    def reads_logits(self) -> bool:
        """Whether states have to be read out to measure them."""
        return self.criterion not in ("latent_diff", "cosine")

    def leaves(self, measure: Tensor) -> Tensor:
        """Return who leaves, given the measure of each token (...)."""
        if self.criterion == "argmax_stability":
            return measure >= self.threshold
        return measure < self.threshold

    def begin(self, about: Pass, read_out: Callable[[Tensor], Tensor] | None) -> RuleRun:
        """Return the run of a pass; ``read_out`` gives the logits of states (B, T, D)."""
        return RuleRun(self, about, read_out)


class Seen(NamedTuple):
    """What a rule has seen of tokens after a repeat."""

    state: Tensor
    """(..., D)"""

    logits: Tensor | None = None
    """(..., V), if the criterion reads any."""

    stable: Tensor | None = None
    """(...) repeats since the likeliest token changed, where that is the criterion."""


def measure(criterion: Criterion, now: Seen, before: Seen) -> Tensor:
    """Return the measure (...) of a criterion; ``before`` the first repeat there are no logits."""
    if criterion == "latent_diff":
        return (now.state - before.state).norm(dim=-1) / now.state.norm(dim=-1)
    if criterion == "cosine":
        return 1.0 - F.cosine_similarity(now.state, before.state, dim=-1)
    assert now.logits is not None
    if criterion == "argmax_stability":
        if before.logits is None:
            return now.logits.new_zeros(now.logits.shape[:-1])
        same = now.logits.argmax(dim=-1) == before.logits.argmax(dim=-1)
        count = 0.0 if before.stable is None else before.stable
        return (count + same.to(now.logits.dtype)) * same
    if criterion == "entropy_diff":
        last = 100.0 if before.logits is None else _entropy(before.logits)
        return (_entropy(now.logits) - last).abs()
    uniform = torch.zeros_like(now.logits) if before.logits is None else before.logits
    old, new = uniform.log_softmax(dim=-1), now.logits.log_softmax(dim=-1)
    if criterion == "min_p_kl":
        old, new = _levelled(old), _levelled(new)
    return (old.exp() * (old - new)).sum(dim=-1)


def _entropy(logits: Tensor) -> Tensor:
    p = logits.softmax(dim=-1)
    return -(p * (p + 1e-10).log()).sum(dim=-1)


def _levelled(log_p: Tensor) -> Tensor:
    """Return log p (..., V) where what is below a tenth of the largest is 1/V, normalised."""
    p = log_p.exp()
    is_low = p < MIN_P * p.amax(dim=-1, keepdim=True)
    levelled = p.masked_fill(is_low, 1.0 / p.shape[-1])
    return (levelled / levelled.sum(dim=-1, keepdim=True)).log()


class RuleRun(ExitRun):
    """A pass in evaluation, in which tokens leave by a rule."""

    def __init__(
        self, rule: ExitRule, about: Pass, read_out: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__(about, freezes=rule.halted == "freeze")
        self.rule, self.read_out = rule, read_out
        self.seen: Seen | None = None

    def before(self, place: Place, step: Step) -> Step | None:
        """Remember the state that the first repeat begins from."""
        if self.seen is None:
            self.seen = Seen(step.x)
        return super().before(place, step)

    def leaves(self, place: Place, x: Tensor) -> Tensor:
        """Return who leaves (B, T); a classifier's rows leave as one, if logits are read."""
        assert self.seen is not None
        logits = None
        if self.rule.reads_logits:
            assert self.read_out is not None
            logits = self.read_out(x)
            logits = logits if logits.dtype == torch.float64 else logits.float()
        now = Seen(x, logits)
        value = measure(self.rule.criterion, now, self.seen)
        self.seen = now._replace(stable=value)
        leaves = self.rule.leaves(value)
        return leaves if leaves.dim() == 2 else leaves.unsqueeze(1).expand_as(self.running)
