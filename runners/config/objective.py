"""Which passes and repeats a loss is taken of: the section ``train.objective``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from runners.config.checks import at_least, refuse, words

Kind = Literal["auto", "last", "every", "progressive", "deep_supervision"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What of the recurrence the loss is taken of."""

    kind: Kind = "auto"
    """last: the result of a pass, or where its halting weighs all repeats by their exits, all of
    them (model.halting.kind exit_gate, ponder); every: of many repeats, read out one by one;
    progressive: of a pass of full depth and one that stops at a random one (arXiv 2202.05826);
    deep_supervision: of each of the passes that a row's state is carried through, one in a step
    (model.carry.steps); auto: deep_supervision where the model carries its state, else last."""
    weights: Literal["uniform", "linear"] | None = None
    """Of every: what repeats count for: alike, or in proportion to their number; left out:
    uniform."""
    last: int | None = None
    """Of every: how many last repeats are read out; null: all."""
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
        "last": {},
        "every": {"weights": "uniform", "last": None},
        "progressive": {"alpha": 0.5},
        "deep_supervision": {"loss": "stablemax", "exploration": 0.1},
    }
    """Options of each kind, and what they are where they are left out."""

    def __post_init__(self) -> None:
        taken = self.takes[self.kind]
        for name in ("weights", "last", "alpha", "loss", "exploration"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, taken.get(name))
            elif name not in taken:
                allowed = words(tuple(taken))
                refuse(self, name, f"kind {self.kind} does not take it; it takes {allowed}")
        at_least(self, 1, "last")
        for name in ("alpha", "exploration"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                refuse(self, name, "must be at least 0 and at most 1")

    def of_model(self, *, carries: bool) -> ObjectiveConfig:
        """Return the objective with ``auto`` replaced, for a model that may carry its state."""
        if self.kind != "auto":
            return self
        return ObjectiveConfig(kind="deep_supervision" if carries else "last")
