"""How deep training goes: the section ``train.repeats``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from runners.config.checks import above_zero, at_least, refuse, words


@dataclass(frozen=True, kw_only=True)
class RepeatsConfig:
    """How often the group of shared layers is applied in a step of training."""

    kind: Literal["fixed", "uniform", "poisson_lognormal", "poisson", "length"] = "fixed"
    """fixed: as often as the model is made for; uniform: any number from low to high;
    poisson_lognormal: 1 + a Poisson number whose rate is log-normal (arXiv 2502.05171); poisson: a
    Poisson number, at least 1; length: as many as a row is long, as its task counts (arXiv
    2409.15647), where the task generates rows of a length."""
    low: int | None = None
    """Fewest repeats of uniform."""
    high: int | None = None
    """Most repeats of uniform."""
    mean: float | None = None
    """Mean rate of poisson_lognormal, whose repeats are one more on average, and of poisson."""
    sigma: float | None = None
    """Standard deviation of the logarithm of poisson_lognormal's rate; left out: 0.5."""
    number: int | None = None
    """Repeats of fixed, if not those that the model is made for."""
    longest: int | None = None
    """Most repeats of both Poisson kinds and of length: larger numbers are cut to it."""
    per: Literal["batch", "sequence", "token"] = "batch"
    """What shares one draw: the whole batch, or each sequence or token has its own. A sequence that
    is done waits, and takes part in nothing; a token that is done is still read by others."""
    draws: Literal["seed", "published"] = "seed"
    """What the draws follow from besides the step: the run's seed; or nothing, by the generator of
    the published code (seal-rg/recurrent-pretraining, sandyresearch/parcae), to the same
    numbers."""
    grow_steps: int | None = None
    """Steps over which high, the mean or number grows to what is given; null: it is there from the
    first."""
    growth: Literal["linear", "root"] = "linear"
    """Share reached at a share t of grow_steps: t, or 1 - sqrt(1 - t), which begins slowly."""

    takes: ClassVar[dict[str, tuple[str, ...]]] = {
        "fixed": ("number",),
        "uniform": ("low", "high"),
        "poisson_lognormal": ("mean", "sigma", "longest"),
        "poisson": ("mean", "longest"),
        "length": ("longest",),
    }
    may_lack: ClassVar[tuple[str, ...]] = ("number", "longest")

    def __post_init__(self) -> None:
        if self.kind == "poisson_lognormal" and self.sigma is None:
            object.__setattr__(self, "sigma", 0.5)
        taken = self.takes[self.kind]
        for name in ("low", "high", "mean", "sigma", "number", "longest"):
            given = getattr(self, name) is not None
            if given and name not in taken:
                refuse(self, name, f"kind {self.kind} does not take it; it takes {words(taken)}")
            if not given and name in taken and name not in self.may_lack:
                refuse(self, name, f"missing; kind {self.kind} needs it")
        at_least(self, 1, "low", "number", "longest", "grow_steps")
        at_least(self, 0, "sigma")
        above_zero(self, "mean")
        if self.low is not None and self.high is not None and self.high < self.low:
            refuse(self, "high", f"must be at least low={self.low}")
        self._check_together()

    def _check_together(self) -> None:
        if self.kind == "fixed" and self.per != "batch":
            refuse(self, "per", "has no effect with kind fixed, which draws nothing")
        if self.kind == "length" and (self.per == "token" or self.grow_steps is not None):
            name = "per" if self.per == "token" else "grow_steps"
            refuse(self, name, "has no meaning with kind length, which a row decides")
        if self.kind == "fixed" and self.number is None and self.grow_steps is not None:
            refuse(self, "number", "missing; with kind fixed, grow_steps needs it")
        if self.growth == "root" and self.grow_steps is None:
            refuse(self, "growth", "has no effect without grow_steps")
        if self.draws == "published":
            drawn = {"poisson_lognormal": ("batch",), "poisson": ("batch", "sequence")}
            if self.kind not in drawn:
                refuse(self, "draws", f"no published code draws kind {self.kind}")
            if self.per not in drawn[self.kind]:
                expected = f"no published code draws kind {self.kind} for each {self.per}"
                refuse(self, "draws", expected)

    @property
    def most(self) -> int | None:
        """The most repeats that a step may have; None: there is no bound, or the model says it."""
        return {"uniform": self.high, "fixed": self.number}.get(self.kind, self.longest)

    def grown(self, step: int) -> float:
        """Return the share, above 0 and at most 1, that depth has grown to in a step, from 0."""
        if self.grow_steps is None or step + 1 >= self.grow_steps:
            return 1.0
        share = (step + 1) / self.grow_steps
        return share if self.growth == "linear" else 1.0 - (1.0 - share) ** 0.5
