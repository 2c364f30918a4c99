"""What goes into a stack besides the embedded tokens, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from moeut.blocks.routing import RoutingRecord
from moeut.recurrence.cache import StackCache
from moeut.recurrence.carry import Carried
from moeut.recurrence.row_depth import RowDepth

if TYPE_CHECKING:
    from moeut.recurrence.exit_rules import ExitRule


class Memory(NamedTuple):
    """An encoder's output, as a decoder's cross-attention reads it."""

    states: Tensor
    """(B, S, D)"""

    real: Tensor | None
    """(B, S), True at real tokens; None: all are."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a form hands to a stack besides the embedded tokens (B, T, D)."""

    tokens: Tensor | None = None
    """(B, T) whole numbers that were embedded, for what reads more of them than that."""

    real: Tensor | None = None
    """(B, T) True at tokens that are no padding; None: all are."""

    prefix_length: Tensor | None = None
    """(B,) tokens before it are seen by all."""

    document_numbers: Tensor | None = None
    """(B, T) tokens see those of their own number alone, and absolute positions begin anew."""

    memory: Memory | None = None
    """What cross-attention reads."""

    initial_state: Tensor | None = None
    """(B, T, D) that the first repeat begins from, in place of what ``state.start`` says."""

    carried: Carried | None = None
    """States of an earlier pass that this one goes on from; None: it begins anew."""

    num_repeats: int | None = None
    """Passes through the group; None: as configured."""

    backprop_repeats: int | None = None
    """Last repeats that gradients flow through; None: all of them."""

    row_depth: RowDepth | None = None
    """Repeats that each row or token takes part in; None: all of them."""

    cache: StackCache | None = None
    """Made by ``new_cache`` for the same depth: holds earlier tokens and takes up these."""

    trace: bool = False
    """Whether to keep decisions and states of every application."""

    read_repeats: Sequence[int] | None = None
    """Repeats, from 0, whose states are read out too, negative ones from the last; None: none."""

    is_memory: bool = False
    """Whether a decoder reads the result, so that no loss reads its repeats."""

    exit_rule: ExitRule | None = None
    """When tokens leave in evaluation; None: as the halting says."""

    read_logits: Callable[[Tensor], Tensor] | None = None
    """What gives the logits of returned states (B, T, D), for a rule that measures them."""

    row_shares: Tensor | None = None
    """(B,) share of each row in the auxiliary losses; None: they are means over the batch."""

    activation_checkpointing: bool = False
    """Whether to compute layers anew in the backward pass instead of keeping activations."""


@dataclass(frozen=True)
class StackOutput:
    """What a stack returns."""

    states: Tensor
    """(B, T, D)"""

    auxiliary_loss: Tensor
    """Weighted balance losses and the controllers' losses; zero outside training."""

    trace: list[RoutingRecord] | None = None
    """The decisions of each application, if traced."""

    hidden: list[Tensor] | None = None
    """The embedded input and the state after each application, if traced."""

    decisions: dict[str, Tensor] | None = None
    """What the controllers recorded, such as ``halting.repeats`` (B, T); None without any."""

    repeats: list[Tensor] = field(default_factory=list)
    """(B, T, D) the state that each repeat ended with, before coda and final norm: to begin another
    pass from. Empty with ``order: sequence``, and unless the pass is traced or repeats are read."""

    read: list[Tensor] = field(default_factory=list)
    """(B, T, D) what coda and final norm make of each state in ``Inputs.read_repeats``."""

    repeat_shares: Tensor | None = None
    """(B, T, N) part of the loss that each of ``read`` has, if the halting weighs all repeats."""

    repeat_gates: Tensor | None = None
    """(B, T, N) logits of leaving after each of them."""

    carried: list[Tensor] | None = None
    """(B, T, D) each: the last states, if the pass went on from ``Inputs.carried``."""
