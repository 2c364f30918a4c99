"""What a model returns, made of what its stacks return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from moeut.blocks.routing import RouterRecord, RoutingRecord
from moeut.recurrence.cache import StackCache
from moeut.recurrence.inputs import StackOutput


@dataclass(frozen=True)
class ModelOutput:
    """What a model returns."""

    logits: Tensor
    """(B, T, vocabulary); from a classifier (B, classes), from a labeller (B, S, classes)."""

    auxiliary_loss: Tensor
    """Scalar to add to the loss, already weighted; zero outside training."""

    cache: StackCache | None = None
    """The cache that was handed in, with these tokens taken up."""

    trace: dict[str, list[RoutingRecord]] | None = None
    """By stack: the decisions of each application, if traced."""

    hidden: dict[str, list[Tensor]] | None = None
    """By stack: the embedded input, then the state after each application, if traced."""

    decisions: dict[str, dict[str, Tensor]] | None = None
    """By stack: what the controllers recorded (``halting.repeats``: (B, T) repeats of each token);
    None without any."""

    repeats: dict[str, list[Tensor]] = field(default_factory=dict)
    """By stack: (B, T, D) the state that each repeat ended with, before coda and final norm; kept
    if traced, or if repeats are read out."""

    repeat_logits: list[Tensor] = field(default_factory=list)
    """The logits of each of ``read_repeats``, as ``logits``: its state went through coda, final
    norm and head. The last one's are ``logits`` themselves unless a controller changed the result.
    """

    repeat_shares: Tensor | None = None
    """(B, T, N) or, from a classifier, (B, N): part of the loss that each of ``repeat_logits`` has,
    in training, if the halting weighs them (``exit_gate``, ``ponder``): then all N are read out."""

    repeat_gates: Tensor | None = None
    """(B, T, N) or (B, N): logits of leaving after each of ``repeat_logits``, beside their shares.
    """

    carried: list[Tensor] | None = None
    """(B, T, D) each: the last states of the last stack, if the pass went on from given ones."""

    halting: Tensor | None = None
    """(B, 2) logits of halting and of going on, if the model has a head for them."""

    step_logits: list[Tensor] = field(default_factory=list)
    """The logits after each of the passes that an answer took, as ``logits``."""


# FSDP sends gradients where a backward pass meets a tensor that a module has returned. PyTorch 2.11
# looks for those in what it can flatten alone: without this they would stay 0, in silence.
for _returned in (ModelOutput, RoutingRecord, RouterRecord):
    register_dataclass(_returned)


def output_of(
    read_out: Callable[[Tensor], Tensor], cache: StackCache | None = None, **stacks: StackOutput
) -> ModelOutput:
    """Return what a model returns, given what its stacks have, encoder first.

    ``read_out`` gives the logits of the last stack's states (B, T, D).
    """
    last = list(stacks.values())[-1]
    logits = read_out(last.states)
    read = [logits if states is last.states else read_out(states) for states in last.read]
    loss = functools.reduce(torch.add, [out.auxiliary_loss for out in stacks.values()])
    traces = {name: out.trace for name, out in stacks.items() if out.trace is not None}
    hidden = {name: out.hidden for name, out in stacks.items() if out.hidden is not None}
    decisions = {name: out.decisions for name, out in stacks.items() if out.decisions is not None}
    return ModelOutput(
        logits,
        loss,
        cache,
        traces or None,
        hidden or None,
        decisions or None,
        repeats={name: out.repeats for name, out in stacks.items()},
        repeat_logits=read,
        repeat_shares=last.repeat_shares,
        repeat_gates=last.repeat_gates,
        carried=last.carried,
    )
