"""Exits: the repeat at which a token leaves, and how likely each is.

Repeats are numbered n = 1 … N. With λ_n = σ(z_n) the probability of leaving after repeat n for who
is still there, and the last repeat keeping who is left,

    p_n = λ_n · Π_{j<n} (1 - λ_j) for n < N,    p_N = Π_{j<N} (1 - λ_j)

so Σ_n p_n = 1, and the last logit has no say. Everything is computed from log p, which is finite
where p is too small for a float.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from moeut.recurrence.controller import Pass, Run, Step, Verdict
from moeut.recurrence.schedule import Place


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log p (..., N) of leaving after each repeat, given logits z (..., N)."""
    stays = F.logsigmoid(-logits[..., :-1]).cumsum(dim=-1)  # of still being there after n
    before = F.pad(stays, (1, 0))  # of still being there when n begins
    leaves = F.logsigmoid(logits[..., :-1])
    return before + F.pad(leaves, (0, 1))


def entropy(log_p: Tensor) -> Tensor:
    """Return the entropy (...) in nats of probabilities whose logarithms are (..., N)."""
    return -(log_p.exp() * log_p).sum(dim=-1)


def geometric(rate: float, num_repeats: int, *, normalised: bool, like: Tensor) -> Tensor:
    """Return the logarithms (N,) of rate · (1 - rate)^(n - 1), ``normalised`` to a sum of 1."""
    n = torch.arange(num_repeats, dtype=like.dtype, device=like.device)
    log_prior = math.log(rate) + n * math.log1p(-rate)
    return log_prior.log_softmax(dim=-1) if normalised else log_prior


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) = Σ p (log p - log q) in nats, over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def expected(log_p: Tensor, values: Tensor) -> Tensor:
    """Return Σ_n p_n · values_n over the last dimension, such as the loss of each repeat."""
    return (log_p.exp() * values).sum(dim=-1)


def first_passed(log_p: Tensor, threshold: float) -> Tensor:
    """Return the first repeat, from 0, by which p sums to ``threshold``, else the last: (...)."""
    passed = log_p.exp().cumsum(dim=-1) >= threshold
    passed[..., -1] = True
    return passed.to(torch.int8).argmax(dim=-1)


def first_drawn(draws: Tensor) -> Tensor:
    """Return the first repeat, from 0, whose draw (..., N) is 1, else the last: (...)."""
    drawn = draws.bool().clone()
    drawn[..., -1] = True
    return drawn.to(torch.int8).argmax(dim=-1)


class ExitRun(Run):
    """One pass in which each token leaves after some repeat, its state there being the result.

    A kind says in ``leaves`` who does. All masks are (B, T).
    """

    def __init__(self, about: Pass, *, freezes: bool) -> None:
        self.about, self.freezes = about, freezes
        ones = torch.ones(about.embedded.shape[:2], dtype=torch.bool, device=about.embedded.device)
        self.running = ones if about.real is None else about.real
        self.repeats = torch.zeros_like(self.running, dtype=torch.int64)
        self.result: Tensor | None = None

    def leaves(self, place: Place, x: Tensor) -> Tensor:
        """Return who leaves (B, T) after the repeat that gave the states x (B, T, D)."""
        raise NotImplementedError

    def before(self, place: Place, step: Step) -> Step | None:
        """Leave out who has left; end the repeats when nobody is there."""
        if place.is_first:
            if self.about.may_end and place.repeat and not bool(self.running.any()):
                return None
            self.repeats = self.repeats + self.running
        if not self.freezes:
            return step
        active = self.running if step.active is None else step.active & self.running
        return step._replace(active=active)

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Keep the states of those who are there, and see who leaves."""
        if place.is_last:
            if self.result is None or self.freezes:  # who has left keeps the state it left with
                self.result = x
            else:
                self.result = torch.where(self.running.unsqueeze(-1), x, self.result)
            self.running = self.running & ~self.leaves(place, x)
        return x

    def finish(self, x: Tensor) -> Verdict:
        """Return the state of each token where it left, and the repeats that it took (B, T)."""
        assert self.result is not None
        return Verdict(self.result, record={"repeats": self.repeats})
