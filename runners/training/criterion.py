"""What of the recurrence a loss is taken of: the kinds of ``train.objective``.

An ``Objective`` knows how a form of model reads a batch; a ``Criterion`` decides how often the
model is called for it, which repeats are read out, and what each counts for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from runners.config.objective import ObjectiveConfig
from runners.config.schema import TrainConfig
from runners.process.ranks import World
from runners.training.batches import Batch
from runners.training.depth import draw_repeats
from runners.training.objective import Loss, Objective, summed_cross_entropy

if TYPE_CHECKING:
    from moeut.config import ModelConfig
    from moeut.recurrence.stack_config import StackConfig

STREAM = 0x70726F67
"""Parts the numbers of progressive from others that are drawn from the same seed and step."""


class Where(NamedTuple):
    """Which part of which step a loss is of."""

    step: int
    """Updates done before."""
    places: np.ndarray[Any, Any]
    """(B,) places of the rows of the part in the whole batch."""
    counts: bool
    """Whether the part counts; otherwise it stands in for rows that a rank has not got."""


class Criterion:
    """The loss of the result of a pass, or of what the model's halting weighs."""

    per: ClassVar[Literal["targets", "rows"]] = "targets"
    """What the sum of the cross entropies is divided by."""
    keeps_state: ClassVar[bool] = False
    """Whether a step depends on those before it, but for the weights."""

    def __init__(self, config: TrainConfig, objective: ObjectiveConfig) -> None:
        self.config, self.objective = config, objective

    def choose(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the rows of a batch (N,) in place of those ``rows`` that are next."""
        return rows

    def loss(self, objective: Objective, call: Any, part: Batch, where: Where) -> Loss:
        """Return the loss of a part of a batch, given how to call the model."""
        return objective.loss(call, part, label_smoothing=self.config.label_smoothing)

    def drawn(self, step: int) -> tuple[int, ...]:
        """Return the numbers drawn for a step that decide how deep its passes are."""
        return ()

    def keep_gradients(self, model: torch.nn.Module, step: int) -> None:
        """Forget the gradients of parameters that a step, counted from 0, must not change."""

    def commit(self) -> None:
        """Keep what the step that has just been done leaves for the next."""

    def state_dict(self, world: World) -> dict[str, Any] | None:
        """Return what is kept, for a checkpoint; every rank has to call it."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, on any number of ranks."""


class OfStep(Criterion):
    """The loss of the result of a pass, whose gradient counts for what the depth of its step says.

    The value of the loss, which the log has, is as it is.
    """

    def __init__(
        self, config: TrainConfig, objective: ObjectiveConfig, repeats: int, seed: int
    ) -> None:
        """Take the repeats of the stack that is read out, where a step draws none, and a seed."""
        super().__init__(config, objective)
        self.repeats, self.seed = repeats, seed

    def loss(self, objective: Objective, call: Any, part: Batch, where: Where) -> Loss:
        """Return the loss of a part of a batch, given how to call the model."""
        loss = super().loss(objective, call, part, where)
        return scaled(loss, self.weight(where.step))

    def drawn(self, step: int) -> tuple[int, ...]:
        """Return the repeats of a step, which say what its gradient counts for."""
        config, last = self.config.repeats, self.config.backprop_repeats
        drawn = draw_repeats(config, seed=self.seed, step=step, backprop_repeats=last)
        return (self.repeats if drawn is None else drawn,)

    def weight(self, step: int) -> float:
        """Return what the gradient of a step, counted from 0, is multiplied by."""
        config, last = self.config, self.config.backprop_repeats
        (repeats,) = self.drawn(step)
        if self.objective.weights == "gradient":
            return gradient_weight(repeats, last)
        assert config.repeats.mean is not None
        assert self.objective.exponent is not None
        return depth_weight(repeats, config.repeats.mean, self.objective.exponent)


def scaled(loss: Loss, weight: float) -> Loss:
    """Return a loss with the gradients multiplied by ``weight``, and the same values."""

    def of(value: torch.Tensor) -> torch.Tensor:
        return value.detach() + weight * (value - value.detach())

    return Loss(of(loss.cross_entropy_sum), of(loss.auxiliary))


def gradient_weight(repeats: int, last: int | None) -> float:
    """Return 1 / the repeats with gradient (``mcleish_throttle`` of Huginn's training code).

    ``last``: how many last ones of the ``repeats`` have a gradient; None: all.
    """
    return 1.0 / (repeats if last is None else min(last, repeats))


def depth_weight(repeats: int, mean: float, exponent: float) -> float:
    """Return ((repeats + 1) / (mean // 2 + 1))^exponent (``elbayad_weighing`` of that code)."""
    return float(((repeats + 1) / (mean // 2 + 1)) ** exponent)


def progressive_weight(repeats: int, last: int) -> float:
    """Return (1 + min(repeats / 4, last / 2)) / last (``throttle`` of mcleish7/arithmetic)."""
    return (1.0 + min(repeats / 4.0, last / 2.0)) / last


class EveryRepeat(Criterion):
    """A weighted sum of the losses of many repeats."""

    def __init__(self, config: TrainConfig, objective: ObjectiveConfig, repeats: int) -> None:
        """Take the repeats of the stack that is read out, where a call does not say others."""
        super().__init__(config, objective)
        self.repeats = repeats

    def loss(self, objective: Objective, call: Any, part: Batch, where: Where) -> Loss:
        """Return the loss of a part of a batch, given how to call the model."""
        repeats = _keywords(call).get("num_repeats", self.repeats)
        count = min(self.objective.last or repeats, repeats)
        reading = functools.partial(call, read_repeats=range(-count, 0))
        output = objective.forward(reading, part)
        targets = part.tensors["targets"]
        smoothing = self.config.label_smoothing
        pairs = zip(self._weights(repeats, count), output.repeat_logits, strict=True)
        losses = [
            weight * summed_cross_entropy(logits, targets=targets, label_smoothing=smoothing)
            for weight, logits in pairs
        ]
        auxiliary = torch.as_tensor(output.auxiliary_loss, device=losses[0].device)
        return Loss(torch.stack(losses).sum(), auxiliary)

    def _weights(self, repeats: int, count: int) -> Sequence[float]:
        """Return what the last ``count`` of ``repeats`` count for; they sum to 1."""
        if self.objective.weights == "uniform":
            return [1.0 / count] * count
        numbers = range(repeats - count + 1, repeats + 1)
        return [number / sum(numbers) for number in numbers]


class Progressive(Criterion):
    """(1 - alpha) · loss at full depth + alpha · loss at a random depth (arXiv 2202.05826).

    Of the pass at full depth gradients flow through the last b repeats, b ``backprop_repeats`` or
    half of all. The other one has n repeats without gradient, n uniform below the full depth, and
    then k with it, k uniform from 1 to what is left, at most b (mcleish7/arithmetic at 86022a5).
    """

    def __init__(
        self, config: TrainConfig, objective: ObjectiveConfig, repeats: int, seed: int
    ) -> None:
        """Take the full depth, where ``train.repeats.number`` does not say another, and a seed."""
        super().__init__(config, objective)
        self.repeats = config.repeats.number or repeats
        self.most = min(config.backprop_repeats or max(self.repeats // 2, 1), self.repeats)
        self.seed = seed

    def draw(self, step: int) -> tuple[int, int]:
        """Return how many repeats of the pass that stops early have no gradient, and have it."""
        generator = np.random.default_rng([STREAM, self.seed, step])
        without = int(generator.integers(0, self.repeats))
        most = min(self.repeats - without, self.most)
        return without, int(generator.integers(1, most, endpoint=True))

    def drawn(self, step: int) -> tuple[int, ...]:
        """Return the numbers drawn for a step that decide how deep its passes are."""
        return self.draw(step)

    def loss(self, objective: Objective, call: Any, part: Batch, where: Where) -> Loss:
        """Return the loss of a part of a batch, given how to call the model."""
        alpha = self.objective.alpha
        assert alpha is not None
        without, with_gradient = self.draw(where.step)
        passes = [
            (1.0 - alpha, self.repeats, self.most),
            (alpha, without + with_gradient, with_gradient),
        ]
        total: Loss | None = None
        for share, repeats, last in passes:
            if not share:
                continue
            of_depth = functools.partial(call, num_repeats=repeats, backprop_repeats=last)
            loss = super().loss(objective, of_depth, part, where)
            shared = Loss(share * loss.cross_entropy_sum, share * loss.auxiliary)
            total = shared if total is None else total + shared
        assert total is not None
        if self.objective.weights == "uniform":
            return total
        return scaled(total, progressive_weight(self.repeats, self.most))


def _keywords(call: Callable[..., Any]) -> dict[str, Any]:
    return call.keywords if isinstance(call, functools.partial) else {}


def refused(config: TrainConfig, model_config: ModelConfig) -> tuple[str, Any, str] | None:
    """Return option, value and reason of what a model cannot be trained with; None: it can all."""
    carries = model_config.carry.is_supervised
    kind = config.objective.of_model(carries=carries).kind
    stack = list(model_config.stacks.values())[-1]
    reason = None
    if config.objective.gate_steps is not None:
        gate_reason = _refuses_gate_steps(model_config)
        if gate_reason is not None:
            return "objective.gate_steps", config.objective.gate_steps, gate_reason
    if kind == "every":
        reason = _refuses_every(stack)
        last, repeats = config.objective.last, stack.depth.repeats
        if reason is None and last is not None and last > repeats:
            return "objective.last", last, f"must be at most model.depth.repeats={repeats}"
    elif kind == "progressive":
        reason = _refuses_progressive(config, model_config)
    elif kind == "deep_supervision":
        if not carries:
            reason = "the model carries no state from pass to pass (model.carry.steps=1)"
        elif config.tokens_per_batch is not None:
            said = "deep supervision keeps a row at each of train.batch_size places"
            return "tokens_per_batch", config.tokens_per_batch, said
        elif config.label_smoothing and config.objective.loss != "softmax":
            said = "has no meaning with train.objective.loss=stablemax"
            return "label_smoothing", config.label_smoothing, said
    if reason is None and model_config.carry.halting != "none" and kind != "deep_supervision":
        reason = "model.carry.halting learns by deep_supervision alone"
    return None if reason is None else ("objective.kind", config.objective.kind, reason)


def _refuses_every(stack: StackConfig) -> str | None:
    if not stack.depth.has_whole_repeats:
        return "model.depth.order=sequence has no whole repeats to read out"
    if stack.halting.kind != "none":
        return f"model.halting.kind={stack.halting.kind} decides what repeats count for"
    if not stack.depth.is_shared:
        return "no layer is repeated (model.depth.repeats=1)"
    return None


def _refuses_gate_steps(model_config: ModelConfig) -> str | None:
    """Return why no gate can learn alone, from the losses of all repeats."""
    halting = model_config.halting
    if halting.kind != "exit_gate":
        return f"needs model.halting.kind=exit_gate, not {halting.kind}"
    if not halting.weighs_repeats():
        return "needs model.halting.loss=weighted, which reads all repeats out"
    if len(model_config.stacks) > 1:
        return "an encoder_decoder has a gate in its encoder, whose repeats have no loss"
    return None


def _refuses_progressive(config: TrainConfig, model_config: ModelConfig) -> str | None:
    for name, stack in model_config.stacks.items():
        reason = stack.refuses_truncation("model.")
        if reason is not None:
            return f"{name}: {reason}"
    if config.repeats.kind != "fixed" or config.repeats.grow_steps is not None:
        return "draws depths of its own, so train.repeats has to be fixed"
    return "is no static graph (train.static_depth)" if config.static_depth else None
