"""What decides while a pass runs: the seam between a stack and its controllers.

A stack applies its layers in a fixed schedule. A *controller* steers a pass through it: it may
change what an application reads (input injection), leave tokens out of it (halting), and add a loss
of its own. The stack knows of no particular one. For each pass it asks every controller for a
``Run``, which owns the state of that pass, and then calls

====================  ==========================================================================
``start(x)``          once, with the state that the first repeat begins from
``before(place, …)``  before each application of the repeated group: what it reads, who takes part
``after(place, …)``   after it: the state that the next application starts from
``finish(x)``         once, after the last repeat: the result, a loss, and what to record
====================  ==========================================================================

Prelude and coda layers are applied outside these calls, to every token. Several controllers nest:
``before`` goes through them in order, ``after`` and ``finish`` in the opposite order.

*Tokens that take no part* (``Step.active``): they get expert -1 from every router and no share in a
balance loss, their state stays as it is, and other tokens go on seeing the keys and values of the
last application of that layer in which they took part. So they cost no expert rows, and a cache
holds the same columns as a whole pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from moeut.options import Kinds, Options
from moeut.recurrence.schedule import Depth, Place


class Step(NamedTuple):
    """What an application reads."""

    x: Tensor
    """(B, T, D)"""

    active: Tensor | None = None
    """(B, T) True at tokens that take part; None: all do."""

    key_value_source: Tensor | None = None
    """(B, T, D) state that self-attention takes keys and values from, if not ``x``."""

    modulation: tuple[Tensor, Tensor] | None = None
    """Scale and shift (D) or (B, T, D) of what every sublayer reads: x · (1 + scale) + shift."""

    by_row: bool = False
    """Whether rows take part as a whole, so that nobody reads keys and values of who does not."""

    keep: Tensor | None = None
    """(B, T) probability with which each token takes part, for losses over routers; None: 1."""

    number: Tensor | None = None
    """(B, T) number of the repeat that each token is in, from 0, where tokens have a depth of their
    own; None: ``Place.repeat``."""

    columns: Tensor | None = None
    """(B, N) ascending columns of the tokens that take part, where all rows have as many and it is
    known how many: then nothing has to wait for a count. None: ``active`` alone says who."""

    is_alone: bool = False
    """Whether tokens that take part see one another alone, and not those that do not."""

    source_active: Tensor | None = None
    """(B, T) True at tokens whose keys and values are computed anew; None: those that take part."""

    freezes: bool = True
    """Whether the state of a token that takes no part stays as it is. If not, it goes through its
    layers without an expert."""


class Verdict(NamedTuple):
    """What a run has come to."""

    x: Tensor
    """(B, T, D) result of the repeated part."""

    loss: Tensor | None = None
    """Scalar to add to the training loss, already weighted."""

    record: dict[str, Tensor] = {}  # noqa: RUF012 - never written to
    """What is of interest besides, by name, for traces."""


class Pass(NamedTuple):
    """What a controller may know of the pass that begins."""

    embedded: Tensor
    """(B, T, D) the input after the prelude."""

    positions: Tensor
    """(T,) or (B, T) position of each token in its row."""

    real: Tensor | None
    """(B, T) True at tokens that are no padding; None: all are."""

    num_repeats: int
    """Passes through the group in this forward pass."""

    may_end: bool
    """Whether ``before`` may end the pass early: not while a cache is filled, since later tokens
    look at what every application has stored, nor before the repeats that gradients flow through,
    nor where asking for the reason costs more."""

    row_shares: Tensor | None = None
    """(B,) share of each row in the loss; None: all rows with a real token count alike."""

    embedding_factor: float = 1.0
    """What token embeddings were multiplied by."""

    document_numbers: Tensor | None = None
    """(B, T) number of each token's document; None: a row is one."""

    def mean(self, values: Tensor, *, padding: bool = False, among: Tensor | None = None) -> Tensor:
        """Return the mean over rows of each row's mean over tokens, or the sum by rows' shares.

        ``values`` (B, T) are one number for each token; those of padding are left out, unless
        ``padding``. A mean over all tokens at once would weigh rows by their length, so that the
        losses of the parts of a split batch would not add up to that of the whole. ``among``
        (B, T), if given, are the real tokens that the means are over.
        """
        real = self.real if among is None else among
        if real is None or padding:
            of_row, counts = values.mean(dim=1), None
        else:
            counts = real.sum(dim=1)
            of_row = (values * real).sum(dim=1) / counts.clamp_min(1)
        if self.row_shares is not None:
            return (of_row * self.row_shares.to(values.dtype)).sum()
        if counts is None:
            return values.mean()  # as published code takes it, to the last bit
        return of_row.sum() / (counts > 0).sum().clamp_min(1)

    def token_mean(self, values: Tensor, *, by_row: bool) -> Tensor:
        """Return the mean of ``values`` (B, T, N) over the real tokens: (B, 1, N) or (1, 1, N)."""
        dims = (1,) if by_row else (0, 1)
        if self.real is None:
            return values.mean(dim=dims, keepdim=True)
        real = self.real.unsqueeze(-1)
        return (values * real).sum(dims, keepdim=True) / real.sum(dims, keepdim=True).clamp_min(1)


class Run:
    """One pass of a controller; what a kind does not override changes nothing."""

    def start(self, x: Tensor) -> Tensor:
        """Return the state (B, T, D) that the first repeat begins from."""
        return x

    def before(self, place: Place, step: Step) -> Step | None:
        """Return what the application reads; None ends the repeats here, if ``Pass.may_end``."""
        return step

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Return the next state, given what the application read and its result x (B, T, D)."""
        return x

    def finish(self, x: Tensor) -> Verdict:
        """Return the result of the repeated part, whose last state is x (B, T, D)."""
        return Verdict(x)


class Controller(nn.Module):
    """Begins a run for each forward pass; it keeps parameters, and no state of a pass."""

    refuses_cache: str | None = None
    """Why a stack with it cannot decode with a cache; None: it can."""

    is_counting: bool = True
    """Whether training passes are counted: not those of a stand-in for an empty part of a batch."""

    def counted(self) -> Tensor | None:
        """Return (N,) numbers of the training passes since the last update of the weights.

        They are added up over ranks and handed to ``after_update``; None: nothing is counted.
        """
        return None

    def after_update(self, counts: Tensor) -> None:
        """Change, after an update of the weights, what is learned without gradient."""

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ControllerOptions(Options):
    """Options of every kind of controller."""

    decides_each_application: ClassVar[bool] = False
    """Whether it decides at each application of a layer, and not only where a repeat begins."""

    def build(self, d_model: int) -> Controller | None:
        """Return the module, for states of width ``d_model``; None: there is nothing to decide."""
        return None

    def build_in(self, d_model: int, depth: Depth) -> Controller | None:
        """Return the module of a stack of that depth."""
        return self.build(d_model)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of one decision for one token."""
        return 0

    def shares(self, repeats: int) -> list[float]:
        """Return the part of the tokens that each repeat computes, as far as options say it."""
        return [1.0] * repeats

    chooses_keys: ClassVar[bool] = False
    """Whether it says of which state keys and values are made."""

    def hides_others(self) -> bool:
        """Return whether tokens that take part see one another alone, unless keys are shared."""
        return False

    def weighs_repeats(self) -> bool:
        """Return whether training weighs the losses of all repeats by ``log_probability``.

        A controller of which this holds records it (B, T, N) in training, and the ``logits`` of
        leaving.
        """
        return False

    def gives_way(self) -> bool:
        """Return whether a rule may say in evaluation who leaves, in its place."""
        return False

    def looks_ahead(self) -> str | None:
        """Return why a stack that looks back alone cannot have it; None: it can."""
        return None


@dataclass(frozen=True, kw_only=True)
class NoHalting(ControllerOptions):
    """Every token goes through every repeat."""

    kind: ClassVar[str] = "none"

    def gives_way(self) -> bool:
        """Return that a rule may: there is nothing to give way."""
        return True


HALTING: Kinds[ControllerOptions] = Kinds(
    {
        "none": NoHalting,
        "act": "moeut.recurrence.halting:AdaptiveComputationTime",
        "exit_gate": "moeut.recurrence.exit_gate:ExitGate",
        "ponder": "moeut.recurrence.exit_gate:Ponder",
        "stick_breaking": "moeut.recurrence.stick_breaking:StickBreaking",
        "expert_choice": "moeut.recurrence.mixture:ExpertChoice",
        "token_choice": "moeut.recurrence.mixture:TokenChoice",
    }
)
"""Every kind of ``halting`` by name, imported when it is taken."""
