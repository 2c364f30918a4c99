"""Which passes and repeats a loss is taken of: the section ``train.objective``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from runners.config.checks import above_zero, at_least, refuse, words

Kind = Literal["auto", "last", "every", "progressive", "deep_supervision"]
Weights = Literal["uniform", "linear", "gradient", "depth"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What of the recurrence the loss is taken of."""

    kind: Kind = "auto"
    """last: the result of a pass, or where its halting weighs all repeats by their exits, all of
    them (model.halting.kind exit_gate, ponder); every: of many repeats, read out one by one;
    progressive: of a pass of full depth and one that stops at a random one (arXiv 2202.05826);
    deep_supervision: of each of the passes that a row's state is carried through, one in a step
    (model.carry.steps); auto: deep_supervision where the model carries its state, else last."""
    weights: Weights | None = None
    """Of every: what repeats count for: alike (uniform), or in proportion to their number (linear).
    Of last: what a step's gradient counts for, as in Huginn's training code: uniform; gradient: 1 /
    the repeats with gradient; or depth: ((r + 1) / (m + 1))^exponent, with r its repeats and m half
    of repeats.mean. Of progressive: uniform; or gradient, as in the code of arXiv 2405.17399: (1 +
    min(R / 4, b / 2)) / b, with R repeats, b of them with gradient. Left out: uniform."""
    exponent: float | None = None
    """Of last, with weights depth; left out: 1."""
    last: int | None = None
    """Of every: how many last repeats are read out; null: all."""
    gate_steps: int | None = None
    """Of last, with model.halting.kind exit_gate: last steps in which the gate alone learns, from
    what each repeat improves the loss by (second stage of Ouro, arXiv 2510.25741)."""
    alpha: float | None = None
    """Of progressive: share of the pass that stops early; at 0 or 1 there is no other; left out:
    0.5."""
    loss: Literal["stablemax", "softmax"] | None = None
    """Of deep_supervision: what probabilities are in proportion to: s(a) = a + 1, or 1 / (1 - a)
    below 0 (arXiv 2501.04697), or exp(a); left out: stablemax."""
    exploration: float | None = None
    """Of deep_supervision: share of passes at which a row must not halt before a random number of
    them; left out: 0.1."""

    takes: ClassVar[dict[str, dict[str, object]]] = {
        "auto": {},
        "last": {"weights": "uniform", "exponent": None, "gate_steps": None},
        "every": {"weights": "uniform", "last": None},
        "progressive": {"weights": "uniform", "alpha": 0.5},
        "deep_supervision": {"loss": "stablemax", "exploration": 0.1},
    }
    """Options of each kind, and what they are where they are left out."""

    weightings: ClassVar[dict[str, tuple[str, ...]]] = {
        "last": ("uniform", "gradient", "depth"),
        "every": ("uniform", "linear"),
        "progressive": ("uniform", "gradient"),
    }
    """Weights of each kind."""

    def __post_init__(self) -> None:
        taken = self.takes[self.kind]
        names = ("weights", "exponent", "last", "gate_steps", "alpha", "loss", "exploration")
        for name in names:
            if getattr(self, name) is None:
                object.__setattr__(self, name, taken.get(name))
            elif name not in taken:
                allowed = words(tuple(taken))
                refuse(self, name, f"kind {self.kind} does not take it; it takes {allowed}")
        weightings = self.weightings.get(self.kind, ())
        if self.weights is not None and self.weights not in weightings:
            refuse(self, "weights", f"expected one of {words(weightings)} for kind {self.kind}")
        if self.weights == "depth" and self.exponent is None:
            object.__setattr__(self, "exponent", 1.0)
        if self.weights != "depth" and self.exponent is not None:
            refuse(self, "exponent", "has an effect only with weights depth")
        if self.gate_steps is not None and self.weights != "uniform":
            refuse(self, "gate_steps", f"cannot be combined with weights {self.weights}")
        at_least(self, 1, "last", "gate_steps")
        above_zero(self, "exponent")
        for name in ("alpha", "exploration"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                refuse(self, name, "must be at least 0 and at most 1")

    def of_model(self, *, carries: bool) -> ObjectiveConfig:
        """Return the objective with ``auto`` replaced, for a model that may carry its state."""
        if self.kind != "auto":
            return self
        return ObjectiveConfig(kind="deep_supervision" if carries else "last")
