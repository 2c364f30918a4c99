"""From a config to the things that it describes: task, objective, model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

import moeut
import tasks
from moeut import architectures
from moeut.config import ModelConfig
from moeut.design import Blueprint
from moeut.options import OptionError
from runners.config.match import MatchConfig
from runners.config.schema import RunConfig
from runners.training.criterion import refused
from runners.training.lengths import train_columns
from runners.training.objective import OBJECTIVES, Objective
from tasks.base.task import LABELLINGS, Task


@dataclass(frozen=True)
class Built:
    """What a run's config describes."""

    config: RunConfig
    """The run, with what follows from the budgets of its ``match`` filled in."""
    task: Task
    objective: Objective
    model_config: ModelConfig
    split_names: list[str]
    missing: str | None = None
    """Which data is not there, and the command that makes it; a plan alone does without."""
    unmet: tuple[str, ...] = ()
    """Which budgets of ``match`` are not met, and how far off they are."""

    @property
    def default_repeats(self) -> int | list[int]:
        """Repeats the model was made for; a pair, encoder first, where there are two stacks."""
        repeats = [stack.depth.repeats for stack in self.model_config.stacks.values()]
        return repeats if len(repeats) > 1 else repeats[0]

    @property
    def is_shared(self) -> bool:
        """Whether the depth of every stack can be changed at call time."""
        return all(stack.depth.is_shared for stack in self.model_config.stacks.values())

    def depths(self, config: RunConfig) -> list[int | list[int]]:
        """Return the depths that the run is scored at, its own first.

        ``evaluate.repeats`` counts for shared models alone: a sweep gives it to all its variants.
        Left to follow from the model, it is 1, half its own depth and twice, of each stack.
        """
        own = self.default_repeats
        if not self.is_shared:
            return [own]
        stacks = own if isinstance(own, list) else [own]
        if config.evaluate.repeats == "auto":
            wanted = [[1 for _ in stacks], [math.ceil(n / 2) for n in stacks]]
            wanted += [stacks, [2 * n for n in stacks]]
        else:
            wanted = [[n for _ in stacks] for n in config.evaluate.further_repeats]
        further = [depth if len(stacks) > 1 else depth[0] for depth in wanted]
        return [own, *(d for i, d in enumerate(further) if d != own and d not in further[:i])]

    def ignores_repeats(self, config: RunConfig) -> bool:
        """Return whether ``evaluate.repeats`` is given and has no effect."""
        return bool(config.evaluate.further_repeats) and not self.is_shared

    def final_splits(self, config: RunConfig) -> list[str]:
        """Return the splits scored at the end."""
        every = [name for name in self.split_names if name != self.task.train_split]
        return config.evaluate.splits or every

    def interval_splits(self, config: RunConfig) -> list[str]:
        """Return the splits scored on the way, the selecting one among them."""
        default = self.task.in_distribution_split or self.final_splits(config)[-1]
        splits = config.evaluate.interval_splits or [default]
        chosen = config.selection_split
        return splits if chosen is None or chosen in splits else [*splits, chosen]


def notices(runs: Iterable[tuple[str, RunConfig, Built]]) -> list[str]:
    """Return what is said before runs begin of those, by name, that do not do what they seem to."""
    fixed: dict[str, None] = {}
    blind: dict[str, None] = {}
    for name, config, built in runs:
        if built.ignores_repeats(config):
            fixed[name] = None
        if not all(stack.tells_order for stack in built.model_config.stacks.values()):
            blind[name] = None
    said = []
    if fixed:
        why = "a stack shares no layers, so its depth is fixed (depth.repeats=1)"
        said.append(f"evaluate.repeats has no effect on {', '.join(fixed)}: {why}")
    if blind:
        why = "attention looks both ways, and model.position, which could tell it, is none"
        said.append(f"nothing tells the order of tokens in {', '.join(blind)}: {why}")
    return said


def build(config: RunConfig, *, needs_data: bool = True) -> Built:
    """Build the task and the model's config, and check what only they can tell.

    Args:
        config: the run.
        needs_data: false for a plan, which does without a text that is not packed yet.

    Raises:
        ConfigError: a split that the task does not have, or sizes that do not fit together.
        tasks.DataMissing, tasks.DataDamaged: a data file is missing, or not the published one.
    """
    task = build_task(config.task)
    missing = None if needs_data else missing_data(config.task)
    with config.locating("task"):
        split_names = task.split_names() if missing else list(task.splits())
    config.check_splits(split_names, list(task.selection_splits))
    if config.selection_split and config.evaluate.interval is None:
        raise config.error(
            "select", config.select, "needs evaluate.interval, the steps between its evaluations"
        )
    section = config.model
    objective = _objective(json.dumps(config.task, sort_keys=True), section.form)
    if missing is None:
        _check_longest_row(config, objective)
    try:
        model_config = architectures.configure(
            _told(section.blueprint, objective),
            form=section.form,
            **objective.sizes(),
        )
    except OptionError as error:
        raise config.located(error, "model") from error
    is_matched = config.match != MatchConfig()
    if is_matched:
        from runners.training import matching  # runs of no budget do without

        model_config = matching.sized(config, model_config, objective)
    _check_positions(config, objective, model_config)
    _check_depth(config, model_config, task)
    _check_choices(config, model_config, task)
    problem = refused(config.train, model_config)
    if problem is not None:
        option, value, expected = problem
        raise config.error(f"train.{option}", value, expected)
    if config.train.cuda_graph is True:
        from runners.training import graphs

        reason = graphs.refused(config.train, model_config)
        if reason is not None:
            raise config.error("train.cuda_graph", True, f"{reason}; allowed: auto, false")
    unmet: tuple[str, ...] = ()
    if is_matched:
        config = matching.with_steps(config, model_config, objective)
        unmet = matching.unmet(config, model_config, objective)
    return Built(config, task, objective, model_config, split_names, missing, unmet)


def _told(blueprint: Blueprint, objective: Objective) -> Blueprint:
    """Return the blueprint with what follows from the words of the task filled in."""
    words = objective.words()
    return dataclasses.replace(
        blueprint,
        position=blueprint.position.told(*words),
        input_position=blueprint.input_position.told(*words),
    )


def _check_longest_row(config: RunConfig, objective: Objective) -> None:
    budget = config.train.tokens_per_batch
    if budget is None:
        return
    longest = int(train_columns(objective).shape.sum(axis=1).max(initial=0))
    if longest > budget:
        raise config.error(
            "train.tokens_per_batch", budget, f"below the longest row of train, {longest} tokens"
        )


def _check_positions(config: RunConfig, objective: Objective, model_config: ModelConfig) -> None:
    """Refuse learned positions that end before the longest row of any split does."""
    for name, tokens in objective.longest().items():
        length = tokens + model_config.prefix.rows
        limit = model_config.stacks[name].position_limit
        if limit is not None and limit[1] < length:
            raise config.error(
                f"model.{limit[0]}",
                limit[1],
                f"must be at least {length}, which the longest row needs in the {name}",
            )


def _check_depth(config: RunConfig, model_config: ModelConfig, task: Task) -> None:
    """Refuse a depth in training that a stack of the model cannot have."""
    repeats, last = config.train.repeats, config.train.backprop_repeats
    if repeats.kind == "length" and not hasattr(task, "loops"):
        said = f"task {task.name!r} does not generate rows of a length"
        raise config.error("train.repeats.kind", "length", said)
    for name, stack in model_config.stacks.items():
        if repeats.kind != "fixed" and not stack.depth.is_shared:
            raise config.error(
                "train.repeats.kind",
                repeats.kind,
                f"the {name} shares no layers, so its depth is fixed (model.depth.repeats=1)",
            )
        if repeats.per != "batch" or config.train.static_depth:
            is_static = repeats.per == "batch"
            option = "static_depth" if is_static else "repeats.per"
            value = True if is_static else repeats.per
            reason = stack.refuses_row_depth("model.", is_truncated=last is not None)
            if reason is not None:
                raise config.error(f"train.{option}", value, f"{name}: {reason}")
        if repeats.per == "token" and len(model_config.stacks) > 1:
            said = "an encoder_decoder reads two sequences; expected batch or sequence"
            raise config.error("train.repeats.per", repeats.per, said)
        reason = None if last is None else stack.refuses_truncation("model.")
        if reason is not None:
            raise config.error("train.backprop_repeats", last, f"{name}: {reason}")


def _check_choices(config: RunConfig, model_config: ModelConfig, task: Task) -> None:
    """Refuse ways of choosing repeats that the task or the model does not have."""
    ways = config.evaluate.choose_repeats
    if not ways:
        return
    path, stack = "evaluate.choose_repeats", list(model_config.stacks.values())[-1]
    if task.kind not in LABELLINGS:
        said = f"task {task.name!r} has no label at each position"
        raise config.error(path, ways, said)
    if not stack.depth.is_shared:
        raise config.error(path, ways, "no layer is repeated (model.depth.repeats=1)")
    if "length" in ways:
        if not hasattr(task, "loops"):
            said = f"task {task.name!r} does not generate rows of a length"
            raise config.error(path, "length", said)
        reason = stack.refuses_row_depth("model.")
        if reason is not None:
            raise config.error(path, "length", reason)


def build_task(section: dict[str, Any]) -> Task:
    """Return the task of a config's ``task`` section; the last few stay in memory."""
    return _task(json.dumps(section, sort_keys=True))


def data_hash(section: dict[str, Any]) -> str:
    """Return the hash of the data of a config's ``task`` section."""
    return build_task(section).data_hash()


def missing_data(section: dict[str, Any]) -> str | None:
    """Return why the text of a ``task`` section cannot be read yet; None for all other tasks."""
    return build_task(section).missing()


@functools.lru_cache(maxsize=4)
def _task(section: str) -> Task:
    options = json.loads(section)
    return tasks.create(options.pop("name"), **options)


@functools.lru_cache(maxsize=8)
def _objective(section: str, form: str) -> Objective:
    task = _task(section)
    if task.kind not in OBJECTIVES:
        from runners.training.position_objective import POSITION_OBJECTIVES

        return POSITION_OBJECTIVES[task.kind][form](task)
    return OBJECTIVES[task.kind][form](task)


def build_model(model_config: ModelConfig, device: torch.device) -> torch.nn.Module:
    """Return a freshly initialised model.

    It is initialised on the CPU, from torch's global generator, so that every device begins with
    the same weights.
    """
    return moeut.build(model_config).to(device)
