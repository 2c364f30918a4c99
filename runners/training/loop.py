"""The training loop: one update, and the schedule of updates, evaluations and checkpoints.

One loop serves every kind of task; the differences are in the ``Objective``. ``Loop.state_dict``
holds everything that a step changes, so a resumed run is bitwise the run that was never
interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from moeut.recurrence.controller import Controller
from runners.config.schema import TrainConfig
from runners.process.generators import random_state, seed_everything, set_random_state
from runners.process.ranks import World, rank_seed
from runners.process.signals import Stopped
from runners.training import parallel
from runners.training.batches import Batch, Columns, Prefetch
from runners.training.criterion import Criterion, EveryRepeat, OfStep, Progressive, Where
from runners.training.depth import depth_of_step
from runners.training.objective import Objective
from runners.training.optimization import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    learning_rate,
    set_rate,
    start_average,
)
from runners.training.parallel import autocast
from runners.training.work import Gradients, Part, Work, like

if TYPE_CHECKING:
    from runners.training.graphs import Capture, Replays


class NonFinite(RuntimeError):
    """A loss or gradient is not finite; raised before the update that it would spoil."""


@dataclass
class Position:
    """Where a run stands, besides its weights, optimiser and random states."""

    step: int = 0
    """Updates done."""
    tokens_seen: int = 0
    """Real tokens read by the model so far, over all its sequences."""
    evaluated_step: int = 0
    """Last step that was evaluated on the way."""
    steps_since_row: int = 0
    """Updates since the last row of the log, over which the next row takes its means."""
    loss_sum: float = 0.0
    auxiliary_sum: float = 0.0
    best_score: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class _Share:
    """What one rank reads in one step."""

    rows: np.ndarray
    """Rows of the whole batch, over all ranks and parts."""
    parts: list[tuple[Batch, int]]
    """A batch to accumulate, and how many of its rows count: all of them, or 0 for a stand-in on a
    rank that got no rows, since every rank has to make as many backward passes."""
    places: list[np.ndarray]
    """Where in ``rows`` the rows of each part are."""


class Loop:
    """A model in training: its optimiser, its place in the data, and one update at a time.

    Args:
        config: the ``train`` section.
        objective: encodes rows and computes the loss.
        model: already initialised, on ``device``.
        columns: the train split, encoded.
        seed: decides the data order; dropout draws from the global generators.
        d_model: width, which noam needs.
        device: where the model is.
        world: this process's place among the ranks that share each batch.
        capture: records steps, which are then replayed; None: every step is plain.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        objective: Objective,
        model: torch.nn.Module,
        columns: Columns,
        seed: int,
        d_model: int,
        device: torch.device,
        world: World = World(),  # noqa: B008 - frozen
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.objective = objective
        self.model = model
        self.columns = columns
        self.d_model = d_model
        self.device = device
        self.world = world
        self.seed = seed
        self.position = Position()
        self.order = columns.order(
            batch_size=config.batch_size,
            tokens_per_batch=config.tokens_per_batch,
            seed=seed,
        )
        if config.activation_checkpointing:
            model.activation_checkpointing = True  # type: ignore[assignment]
        self.average = start_average(model, config)
        self._call = parallel.spread(model, config, world, has_one_shape=_has_one_shape(columns))
        if self.average is not None:
            parallel.shard_like(self.average.module, model, world)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._controllers = [m for m in model.modules() if isinstance(m, Controller)]
        self.optimizer = build_optimizer(model, config)
        self.rows = np.array([], dtype=np.int64)
        """Rows of the last step's whole batch."""
        self.criterion = build_criterion(config, getattr(model, "config", None), seed=seed)
        self._replays: Replays | None = None
        if capture is not None:
            from runners.training.graphs import Replays

            steps = (self._compute, self._update)
            self._replays = Replays(capture, *steps, self.parameters, self.optimizer)
        self._share_of: Callable[[int], _Share] = self._share
        # What a criterion keeps decides a batch: it is known once its step is due.
        waits = device.type == "cpu" and columns.in_memory
        if not (waits or self.criterion.keeps_state):
            self._share_of = Prefetch(self._share, num_steps=config.steps).get
        if not world.is_first:  # the ranks begin with one model, and then draw dropout of their own
            seed_everything(rank_seed(seed, world.rank))

    @property
    def scored(self) -> torch.nn.Module:
        """The model with the weights that are scored: their average, where one is kept."""
        return self.model if self.average is None else self.average.module

    def _share(self, step: int) -> _Share:
        """Return what this rank reads in a step, counted from 0; may be called in a thread."""
        rows = self.criterion.choose(self.order.rows(step))
        parts, places = [], []
        for piece in self.world.pieces(np.arange(len(rows)), self.config.accumulate):
            used = piece if len(piece) else np.zeros(1, dtype=np.int64)
            parts.append((self.columns.batch(rows[used], device=self.device), len(piece)))
            places.append(used)
        return _Share(rows, parts, places)

    def advance(self) -> dict[str, float]:
        """Do one update and return what a row of the log says about it.

        The gradients are those of the whole batch, however many parts and ranks it is split into:
        the cross entropy is averaged over the batch's targets, the auxiliary loss over its
        sequences.

        Raises:
            NonFinite: the loss or the gradient norm is infinite or not a number, on every rank at
                once. The weights, the optimiser and the position are those after the step before.
        """
        position, config, world = self.position, self.config, self.world
        share = self._share_of(position.step)
        rows = self.rows = share.rows
        rate = learning_rate(config, position.step + 1, d_model=self.d_model)
        counted = [part for part, count in share.parts if count]
        num_targets, num_tokens = world.sum_counts(
            sum(part.num_targets for part in counted), sum(part.num_tokens for part in counted)
        )

        count = num_targets if self.criterion.per == "targets" else len(rows)
        work = self._work(share, count)
        losses, norm = self._replays.compute(work) if self._replays else self._compute(work)
        names = ("loss", "auxiliary_loss", "gradient_norm")
        values = dict(zip(names, [*losses.tolist(), float(norm)], strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            raise NonFinite(_describe(values, step=position.step + 1, rate=rate, rows=rows))
        set_rate(self.optimizer, rate)
        if self._replays:
            self._replays.update(norm)
        else:
            self._update(norm)
        self.criterion.commit()
        for controller in self._controllers:
            counts = controller.counted()
            if counts is not None:
                controller.after_update(world.sum(counts))
        if self.average is not None:
            self.average.update_parameters(self.model)

        position.step += 1
        position.tokens_seen += num_tokens
        position.steps_since_row += 1
        position.loss_sum += values["loss"]
        position.auxiliary_sum += values["auxiliary_loss"]
        return values | {"learning_rate": rate}

    def _work(self, share: _Share, divisor: int) -> Work:
        """Return what this rank computes of a step.

        Args:
            share: what it reads.
            divisor: targets of the whole batch, or its rows: what the cross entropy is averaged
                over.
        """
        config, step = self.config, self.position.step
        depth = depth_of_step(
            config,
            seed=self.seed,
            step=step,
            rows=len(share.rows),
            length=self.columns.longest(share.rows),
            loops=self.columns.loops(share.rows) if config.repeats.kind == "length" else None,
        )
        parts = [
            Part(
                batch,
                Where(step, places, count > 0),
                depth.of_part(places, batch, self.device),
                count / len(share.rows),
            )
            for (batch, count), places in zip(share.parts, share.places, strict=True)
        ]
        work = Work(parts, divisor, self.criterion.drawn(step))
        # A graph reads the numbers on the device, where a plain step has to round as it does.
        on_host = self._replays is None and self.device.type == "cpu"
        return work if on_host else work.on(self.device)

    def _compute(self, work: Work) -> Gradients:
        """Compute the gradients of a step, part by part."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(2, device=self.device)
        for index, part in enumerate(work.parts):
            call = functools.partial(self._call, **part.call)
            is_last = index == len(work.parts) - 1
            for controller in self._controllers:
                controller.is_counting = part.where.counts
            with parallel.gradients_sent(self._call, is_last):
                with autocast(self.device, self.config.precision):
                    loss = self.criterion.loss(self.objective, call, part.batch, part.where)
                cross_entropy = loss.cross_entropy_sum / like(work.divisor, loss.cross_entropy_sum)
                if not part.where.counts:  # a stand-in: its gradients must be zero
                    cross_entropy = cross_entropy * 0.0
                auxiliary = loss.auxiliary * like(part.share, loss.auxiliary)
                # The ranks' gradients are averaged, but the loss of the batch is a sum.
                ((cross_entropy + auxiliary) * self.world.size).backward()
            losses += torch.stack([cross_entropy.detach(), auxiliary.detach()])
        self.criterion.keep_gradients(self.model, work.parts[0].where.step)
        return Gradients(self.world.sum(losses), gradient_norm(self.parameters))

    def _update(self, norm: torch.Tensor) -> None:
        """Clip the gradients, whose norm together is ``norm``, and update the weights by them."""
        clip_gradients(self.parameters, norm=norm, largest=self.config.clip_norm)
        self.optimizer.step()

    def log_row(self, values: dict[str, float]) -> dict[str, Any]:
        """Return the row of the log that closes here: losses are means since the row before."""
        position = self.position
        row = {
            "step": position.step,
            "loss": position.loss_sum / position.steps_since_row,
            "auxiliary_loss": position.auxiliary_sum / position.steps_since_row,
            "gradient_norm": values["gradient_norm"],
            "learning_rate": values["learning_rate"],
            "tokens_seen": position.tokens_seen,
        }
        position.steps_since_row, position.loss_sum, position.auxiliary_sum = 0, 0.0, 0.0
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights, in types that ``torch.load(weights_only=True)`` reads.

        Every rank has to call it: each has random states of its own.
        """
        states = self.world.gather(random_state())
        kept = self.criterion.state_dict(self.world)
        several = {"random_of_ranks": states} if len(states) > 1 else {}
        return {
            "optimizer": parallel.optimizer_state(self.model, self.optimizer),
            "random": states[0],
            "position": dataclasses.asdict(self.position),
            **several,
            **({} if kept is None else {"criterion": kept}),
        }

    def load_state_dict(self, state: dict[str, Any], *, shards: Path = Path("none")) -> None:
        """Load a state of ``state_dict``, also one that another number of ranks has saved.

        Rank 0 goes on with its random states. The others do if their number is the same, and begin
        new ones if it is not.

        Args:
            state: what ``state_dict`` returned.
            shards: folder with the optimiser's pieces, if it was saved in pieces.
        """
        parallel.load_optimizer_state(self.model, self.optimizer, state["optimizer"], shards)
        if self._replays:
            self._replays.forget()
        self.position = Position(**state["position"])
        if "criterion" in state:
            self.criterion.load_state_dict(state["criterion"])
        states = state.get("random_of_ranks", [state["random"]])
        if len(states) == self.world.size:
            set_random_state(states[self.world.rank])
        elif self.world.is_first:
            set_random_state(state["random"])
        else:
            seed_everything(rank_seed(self.seed, self.world.rank, self.position.step))


def build_criterion(config: TrainConfig, model_config: Any, *, seed: int) -> Criterion:
    """Return the criterion of ``train.objective`` for a model.

    Args:
        config: the ``train`` section, which fits the model.
        model_config: of the model.
        seed: of the run.
    """
    carry = getattr(model_config, "carry", None)
    objective = config.objective.of_model(carries=carry is not None and carry.is_supervised)
    if objective.kind == "last" and objective.gate_steps is not None:
        from runners.training.gate_stage import GateStage

        return GateStage(config, objective)
    if objective.kind == "last" and objective.weights == "uniform":
        return Criterion(config, objective)
    stack = list(model_config.stacks.values())[-1]
    if objective.kind == "last":
        return OfStep(config, objective, stack.depth.repeats, seed)
    if objective.kind == "every":
        return EveryRepeat(config, objective, stack.depth.repeats)
    if objective.kind == "progressive":
        return Progressive(config, objective, stack.depth.repeats, seed)
    from runners.training.supervision import DeepSupervision

    return DeepSupervision(config, objective, model_config, seed)


def _has_one_shape(columns: Columns) -> bool:
    return bool(len(columns) and (columns.shape == columns.shape[:1]).all())


def _describe(values: dict[str, float], *, step: int, rate: float, rows: np.ndarray) -> str:
    numbers = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
    shown = ", ".join(str(row) for row in sorted(rows.tolist())[:16])
    more = f" and {len(rows) - 16} more" if len(rows) > 16 else ""
    return (
        f"step {step}: {numbers}; learning rate {rate:g}; rows of the train split: {shown}{more}; "
        "stopped before the update"
    )


class Host(Protocol):
    """The run around a loop, as the loop sees it."""

    @property
    def stop_requested(self) -> bool:
        """Whether to save and stop before the next step."""

    def evaluate(self) -> float | None:
        """Score the weights as they are, log it, and return the score that decides the best."""

    def keep_best(self) -> None:
        """Remember the weights as they are as the best so far."""

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to the log."""

    def save(self) -> None:
        """Write a checkpoint."""

    def progress(self, values: dict[str, float]) -> None:
        """Show how far the run is."""


def fit(loop: Loop, host: Host, *, evaluate_interval: int | None) -> None:
    """Train to the last step, or raise ``Stopped`` once the state is saved.

    Logs every ``log_interval`` steps, evaluates every ``evaluate_interval`` and at the end, and
    saves every ``checkpoint_interval`` and at the end.
    """
    config, position = loop.config, loop.position
    unsaved = False

    def is_due(interval: int | None) -> bool:
        if not interval or not position.step:
            return False
        return position.step % interval == 0 or position.step == config.steps

    while True:
        if position.evaluated_step < position.step and is_due(evaluate_interval):
            try:
                score = host.evaluate()
            except Stopped:  # nothing is logged yet: a resumed run evaluates this step again
                if unsaved:
                    host.save()
                raise
            position.evaluated_step = position.step
            # Of equal scores the later counts, as in Csordás et al. (2022).
            best = position.best_score
            if score is not None and (best is None or score >= best):
                position.best_score, position.best_step = score, position.step
                host.keep_best()
            unsaved = True
        stop_requested = host.stop_requested  # once a step: the ranks have to agree on it
        if unsaved and (is_due(config.checkpoint_interval) or stop_requested):
            host.save()
            unsaved = False
        if position.step >= config.steps:
            return
        if stop_requested:
            raise Stopped(f"stopped after step {position.step}")
        values = loop.advance()
        unsaved = True
        if is_due(config.log_interval):
            host.log(loop.log_row(values))
        host.progress(values)
