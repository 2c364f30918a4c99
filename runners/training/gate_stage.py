"""The second stage of Ouro: a gate that learns alone where a further repeat no longer helps.

In the last ``train.objective.gate_steps`` updates nothing but the gate changes. With L_n the cross
entropy of a target after repeat n of N, of which no gradient is taken, and λ_n the gate's
probability of leaving after it (arXiv 2510.25741; the numbers are those of jpli02/torchtitan at
34228f4):

    w_n = σ(50 · (max(L_{n-1} - L_n, 0) - 0.005))
    loss of a target = 1/N · Σ_{n=2..N} -w_n log(1 - λ_n) - (1 - w_n) log λ_n
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moeut.recurrence.exit_gate import GateController
from runners.training.batches import IGNORE, Batch
from runners.training.criterion import Criterion, Where
from runners.training.objective import Loss, Objective

SHARPNESS = 50.0
LEAST = 0.005
"""Improvement, in nats, at which going on is as right as leaving."""


class GateStage(Criterion):
    """The loss that the halting weighs, and in the last steps that of the gate alone."""

    def is_second(self, step: int) -> bool:
        """Return whether the gate learns alone in a step, counted from 0."""
        assert self.objective.gate_steps is not None
        return step >= self.config.steps - self.objective.gate_steps

    def drawn(self, step: int) -> tuple[int, ...]:
        """Return which stage a step is of, since it decides whose gradients there are."""
        return (int(self.is_second(step)),)

    def loss(self, objective: Objective, call: Any, part: Batch, where: Where) -> Loss:
        """Return the loss of a part of a batch, given how to call the model."""
        if not self.is_second(where.step):
            return super().loss(objective, call, part, where)
        output = objective.forward(call, part)
        with torch.no_grad():
            losses = target_losses(output.repeat_logits, part.tensors["targets"])
        gates = output.repeat_gates
        exact = gates.to(torch.promote_types(gates.dtype, torch.float32))
        # Every parameter gets a gradient, for ranks wait for all; ``keep_gradients`` forgets them.
        unused = 0.0 * (output.logits.sum() + output.auxiliary_loss)
        return Loss(gate_loss(losses, exact, part.tensors["targets"]) + unused, unused)

    def keep_gradients(self, model: torch.nn.Module, step: int) -> None:
        """Forget, in the second stage, the gradients of all parameters but the gate's."""
        if not self.is_second(step):
            return
        gates = [module for module in model.modules() if isinstance(module, GateController)]
        kept = {parameter for gate in gates for parameter in gate.parameters()}
        for parameter in model.parameters():
            if parameter not in kept:
                parameter.grad = None


def target_losses(logits: list[Tensor], targets: Tensor) -> Tensor:
    """Return the cross entropy (…, N) of targets (…) after each of N repeats; 0 where ignored.

    ``logits``: (…, V) of each repeat.
    """
    each = [
        F.cross_entropy(
            one.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(targets)
        for one in logits
    ]
    return torch.stack(each, dim=-1)


def gate_loss(losses: Tensor, gates: Tensor, targets: Tensor) -> Tensor:
    """Return the sum, over the targets that count, of the loss of the gate.

    Args:
        losses: (…, N) cross entropy after each repeat.
        gates: (…, N) logits of leaving after each repeat.
        targets: (…), those that are ``IGNORE`` left out.
    """
    improvement = (losses[..., :-1] - losses[..., 1:]).clamp_min(0.0)
    goes_on = torch.sigmoid(SHARPNESS * (improvement - LEAST)).to(gates.dtype)
    each = F.binary_cross_entropy_with_logits(-gates[..., 1:], goes_on, reduction="none")
    per_target = each.sum(dim=-1) / gates.shape[-1]
    return per_target.where(targets != IGNORE, torch.zeros_like(per_target)).sum()
