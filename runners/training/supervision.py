"""Deep supervision: losses of one pass of a model that carries its state from pass to pass.

As in HRM, TRM and URM. Every pass is trained to give the whole answer, and to know whether it is
right: with a the logits of halting and of going on,

    loss of a row = mean of its targets' cross entropies + ½ (BCE(a₀, all right) + BCE(a₁, target))

The second of the two in parentheses is HRM's alone: its target is what a further pass says of the
row, the larger of its two logits, or at the last pass the first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moeut.recurrence.carry import Carried
from runners.config.objective import ObjectiveConfig
from runners.config.schema import TrainConfig
from runners.process.ranks import World
from runners.training.batches import IGNORE, Batch
from runners.training.criterion import Criterion, Where
from runners.training.objective import Loss, Objective

TINY = 1e-30

STREAM = 0x73757076
"""Parts the numbers of exploration from others that are drawn from the same seed and step."""


@dataclass(frozen=True)
class Rules:
    """What halts a row, and what is learned of it."""

    most: int
    """Passes after which every row halts."""
    loss: str = "stablemax"
    """``stablemax`` or ``softmax``."""
    halting: Literal["none", "right", "value"] = "right"
    """What halts a row before its last pass, as in ``model.carry.halting``."""

    @property
    def learns_value(self) -> bool:
        """Whether going on has a value of its own (HRM); after one pass alone there is none."""
        return self.halting == "value" and self.most > 1


class Losses(NamedTuple):
    """Losses of each row, (B,) each."""

    answer: Tensor
    """Mean cross entropy of its targets, in nats."""
    halting: Tensor
    """Weighted losses of the two logits."""
    is_right: Tensor
    """(B,) bool: all targets are the most likely ones."""


def row_losses(
    logits: Tensor,
    halting: Tensor | None,
    targets: Tensor,
    *,
    rules: Rules,
    next_value: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Losses:
    """Return the losses of a pass.

    Args:
        logits: (B, …, V).
        halting: (B, 2) logits of halting and of going on; None: nothing is learned of it.
        targets: (B, …), those that are ``IGNORE`` left out.
        rules: which losses.
        next_value: (B,) what going on is worth, between 0 and 1, where that is learned.
        label_smoothing: share of a target's probability that is spread over all.
    """
    flat = logits.flatten(1, -2) if logits.dim() > 2 else logits.unsqueeze(1)  # (B, T, V)
    targets = targets.reshape(len(targets), -1)  # (B, T), beside (B, T, V)
    counted = targets != IGNORE
    if rules.loss == "stablemax":
        each = stablemax_cross_entropy(flat, targets)
    else:
        each = F.cross_entropy(
            flat.flatten(0, 1).to(torch.promote_types(flat.dtype, torch.float32)),
            targets.flatten(),
            ignore_index=IGNORE,
            label_smoothing=label_smoothing,
            reduction="none",
        ).view_as(targets)
    answer = each.sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    is_right = ((flat.argmax(dim=-1) == targets) | ~counted).all(dim=1)
    if halting is None:
        return Losses(answer, torch.zeros_like(answer), is_right)
    known = halting if halting.dtype == torch.float64 else halting.float()
    loss = _binary(known[:, 0], is_right.to(known.dtype))
    if next_value is not None:
        loss = loss + _binary(known[:, 1], next_value.to(known.dtype))
    return Losses(answer, 0.5 * loss, is_right)


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log(s(a_y) / Σ s(a)) of each target, 0 where it is ``IGNORE``, in float64.

    s(a) = a + 1 from 0 on, 1 / (1 - a) below (arXiv 2501.04697). Logits are (…, V), targets (…).
    """
    exact = logits.to(torch.float64)
    # Where the branch below 0 is not taken it must be finite at 1, or its gradient is 0 · infinity.
    below = 1.0 / (1.0 - exact.clamp(max=0.0) + TINY)
    size = torch.where(exact < 0.0, below, exact + 1.0)
    logarithms = (size / size.sum(dim=-1, keepdim=True)).log()
    counted = targets != IGNORE
    chosen = targets.where(counted, torch.zeros_like(targets)).unsqueeze(-1)
    picked = logarithms.gather(-1, chosen).squeeze(-1)
    return -picked.where(counted, torch.zeros_like(picked))


def halts(halting: Tensor | None, steps: Tensor, least: Tensor, *, rules: Rules) -> Tensor:
    """Return which rows halt after a pass, (B,) bool.

    Args:
        halting: (B, 2) logits of halting and of going on, if the model has them.
        steps: (B,) passes that each row has had, this one among them.
        least: (B,) passes that a row has to have, for exploration.
        rules: when a row halts.
    """
    is_last = steps >= rules.most
    if halting is None:
        return is_last
    other = halting[:, 1] if rules.learns_value else torch.zeros_like(halting[:, 0])
    return (is_last | (halting[:, 0] > other)) & (steps >= least)


def value_of_going_on(halting: Tensor, steps: Tensor, *, rules: Rules) -> Tensor:
    """Return what the logits (B, 2) of a further pass say that going on is worth, (B,).

    ``steps`` (B,) are the passes before that one: at the last of them a row would have to halt.
    """
    best = torch.where(steps >= rules.most, halting[:, 0], halting.amax(dim=1))
    return best.sigmoid()


class DeepSupervision(Criterion):
    """Each step trains one pass of rows that keep their place in the batch until they halt.

    A place has a row of the split, the passes that the row has had, whether it has halted, and the
    states that it goes on from. A row that halts makes room for the next one at its place; other
    rows that would be next are passed over, as in the published codes.
    """

    per: ClassVar[Literal["targets", "rows"]] = "rows"
    keeps_state: ClassVar[bool] = True

    def __init__(
        self, config: TrainConfig, objective: ObjectiveConfig, model_config: Any, seed: int
    ) -> None:
        super().__init__(config, objective)
        carry, count = model_config.carry, config.batch_size
        assert objective.loss is not None
        assert objective.exploration is not None
        self.exploration = objective.exploration
        self.rules = Rules(most=carry.steps, loss=objective.loss, halting=carry.halting)
        self.seed, self.prefix = seed, model_config.prefix.rows
        self.num_states = list(model_config.stacks.values())[-1].recursion.num_states
        self.rows = np.zeros(count, dtype=np.int64)
        self.steps = np.zeros(count, dtype=np.int64)
        self.halted = np.ones(count, dtype=bool)
        self.states: dict[int, Tensor] = {}
        """By place: (states, T, D) of the rows that go on, of this rank's places alone."""
        self._next: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Tensor, Tensor]] = []

    def choose(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the rows (N,) of a step: those that go on, and the next ones at free places."""
        return np.where(self.halted, rows, self.rows)

    def explore(self, step: int) -> np.ndarray[Any, Any]:
        """Return the passes (N,) that the row at each place must have had to halt in a step."""
        generator = np.random.default_rng([STREAM, self.seed, step])
        count = len(self.rows)
        if self.rules.most == 1:
            return np.zeros(count, dtype=np.int64)
        explores = generator.random(count) < self.exploration
        return explores * generator.integers(2, self.rules.most, endpoint=True, size=count)

    def loss(self, objective: Objective, call: Any, part: Batch, where: Where) -> Loss:
        """Return the loss of a part of a batch, given how to call the model."""
        targets, places = part.tensors["targets"], where.places
        carried = self._carried(part, places)
        output = objective.forward(functools.partial(call, carried=carried), part)
        ended = [state.detach() for state in output.carried]
        steps = torch.from_numpy(np.where(self.halted, 0, self.steps)[places] + 1).to(
            targets.device
        )
        value = None
        if self.rules.learns_value:
            goes_on = Carried(ended, torch.zeros_like(carried.begins))
            with torch.no_grad():
                further = objective.forward(functools.partial(call, carried=goes_on), part)
            value = value_of_going_on(further.halting, steps, rules=self.rules)
        losses = row_losses(
            output.logits,
            output.halting,
            targets,
            rules=self.rules,
            next_value=value,
            label_smoothing=self.config.label_smoothing,
        )
        if where.counts:
            least = torch.from_numpy(self.explore(where.step)[places]).to(targets.device)
            halting = None if output.halting is None else output.halting.detach()
            halted = halts(halting, steps, least, rules=self.rules)
            self._next.append((places, part.rows, torch.stack((steps, halted)), torch.stack(ended)))
        auxiliary = output.auxiliary_loss + losses.halting.mean()
        # Stablemax is in float64; the sum need not be more exact than other losses.
        known = torch.promote_types(output.logits.dtype, torch.float32)
        return Loss(losses.answer.sum().to(known), auxiliary)

    def _carried(self, part: Batch, places: np.ndarray[Any, Any]) -> Carried:
        """Return the states of a part, in its width: what is cut off or put in is padding."""
        read = part.tensors["tokens" if "tokens" in part.tensors else "source"]
        width = read.shape[1] + self.prefix
        begins = torch.from_numpy(self.halted[places]).to(read.device)
        kept = {row: self.states[place] for row, place in enumerate(places) if place in self.states}
        like = next(iter(self.states.values()), None)
        shape = (self.num_states, len(places), width, 1 if like is None else like.shape[-1])
        states = torch.zeros(shape, device=read.device, dtype=None if like is None else like.dtype)
        for row, state in kept.items():
            length = min(width, state.shape[1])
            states[:, row, :length] = state[:, :length]
        return Carried(list(states.unbind(0)), begins)

    def commit(self) -> None:
        """Keep the states of the rows that go on, and who has halted."""
        for places, rows, numbers, states in self._next:
            steps, halted = numbers.cpu().numpy()
            self.rows[places], self.steps[places] = rows, steps
            self.halted[places] = halted.astype(bool)
            for row, place in enumerate(places.tolist()):
                if halted[row]:
                    self.states.pop(place, None)
                else:
                    self.states[place] = states[:, row].clone()
        self._next = []

    def state_dict(self, world: World) -> dict[str, Any]:
        """Return what every place has, of all ranks; every rank has to call it."""
        own = np.concatenate(world.pieces(np.arange(len(self.rows)), self.config.accumulate))
        mine = {
            "places": torch.from_numpy(own),
            "rows": torch.from_numpy(self.rows[own]),
            "steps": torch.from_numpy(self.steps[own]),
            "halted": torch.from_numpy(self.halted[own]),
            "states": {place: state.cpu() for place, state in self.states.items()},
        }
        return {"ranks": world.gather(mine)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, on any number of ranks."""
        self.states = {}
        for one in state["ranks"]:
            places = one["places"].numpy()
            self.rows[places] = one["rows"].numpy()
            self.steps[places] = one["steps"].numpy()
            self.halted[places] = one["halted"].numpy()
            self.states |= one["states"]
