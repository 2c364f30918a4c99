"""The config tree of a run and of a sweep.

Every field's docstring is what ``--help`` prints. ``task`` and ``model`` are open sections: their
keys are the options of the chosen task (``tasks.TASKS``) and those of ``moeut.design.Blueprint``,
checked there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tasks
from runners.config.checks import NOT_IDENTITY, at_least, check_seed, refuse
from runners.config.match import MatchConfig
from runners.config.repeats import RepeatsConfig
from runners.config.train import TrainConfig
from runners.config.yaml_nodes import ConfigError, Node
from tasks.base.data_files import DataDamaged, DataMissing
from tasks.base.options import nearest

if TYPE_CHECKING:
    from moeut.config import Form
    from moeut.design import Blueprint

MOST_COUNTED = 1000
"""Seeds that a number may stand for; more are given as a list, since a seed is easily written where
their number belongs."""

__all__ = [
    "NOT_IDENTITY",
    "ConfigError",
    "EvaluateConfig",
    "ModelSection",
    "RepeatsConfig",
    "RunConfig",
    "SweepConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, when."""

    splits: list[str] = field(default_factory=list)
    """Splits scored at the end; empty: every split but train."""
    interval: int | None = None
    """Steps between evaluations of interval_splits on the way; null: only at the end."""
    interval_splits: list[str] = field(default_factory=list)
    """Splits scored on the way; empty: the in-distribution split."""
    repeats: list[int] | Literal["auto"] | None = "auto"
    """Further depths (num_repeats) at which a shared model is scored at the end, besides its own.
    auto: 1, half its own and twice, each on the same few rows of a split (256, or 64 windows of
    text); a list: these, on all scored rows; null or []: none."""
    choose_repeats: list[Literal["confidence", "length"]] = field(default_factory=list)
    """Ways to choose each row's repeats by which a split is scored at the end besides, where a
    label stands at each position (arXiv 2409.15647). confidence: the repeat that is surest of its
    own answers; length: as many as a row is long, as its task counts. A table shows both beside
    the run's own depth."""
    most_repeats: int | None = None
    """Most repeats that choose_repeats may take; null: the run's own depth."""
    rows_per_category: int | dict[str, int] | None = None
    """Score only so many rows of each category of a split, chosen by hash, or so many windows of
    text, evenly spread; tables say so. One number for every split, or {split: number}, where a
    split that is not named is scored whole."""
    batch_size: int = 256
    """Sequences decoded at once; of text as many windows are read as their logits have room for."""

    def __post_init__(self) -> None:
        at_least(self, 1, "interval", "batch_size", "most_repeats")
        if self.most_repeats is not None and not self.choose_repeats:
            refuse(self, "most_repeats", "has no effect without choose_repeats")
        limits = self.rows_per_category
        for limit in limits.values() if isinstance(limits, dict) else [limits]:
            if limit is not None and limit < 1:
                refuse(self, "rows_per_category", "must be at least 1")
        if any(number < 1 for number in self.further_repeats):
            refuse(self, "repeats", "each must be at least 1")
        if self.interval_splits and self.interval is None:
            expected = "has no effect without interval, the number of steps between evaluations"
            refuse(self, "interval_splits", expected)
        named = {name: getattr(self, name) for name in ("splits", "interval_splits")}
        given = {"repeats": self.further_repeats, "choose_repeats": self.choose_repeats}
        for name, values in (named | given).items():
            if len(set(values)) != len(values):
                refuse(self, name, "one is given twice")

    @property
    def further_repeats(self) -> list[int]:
        """The depths that are given; none where they follow from the model."""
        return self.repeats if isinstance(self.repeats, list) else []

    def rows_of(self, split: str) -> int | None:
        """Return how many rows of each category of a split are scored; None: all of them."""
        limits = self.rows_per_category
        return limits.get(split) if isinstance(limits, dict) else limits


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """A model without the sizes that its task decides, defaults filled in."""

    architecture: str = field(metadata=NOT_IDENTITY)
    """Whose defaults were taken; a label, since ``blueprint`` says all of the model."""
    form: Form
    """How the model reads and answers."""
    blueprint: Blueprint
    """Every other option, under the keys that YAML has beside those above."""

    def to_dict(self) -> dict[str, Any]:
        """Return the section as YAML has it."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return own | own.pop("blueprint").to_dict()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    task: dict[str, Any]
    """name and the options of that task; see ``python -m tasks.show --help``."""
    model: ModelSection
    """architecture or preset, and what differs from its defaults."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is measured."""
    match: MatchConfig = field(default_factory=MatchConfig)
    """Budgets that sizes of the model and steps follow from."""
    select: str = "final"
    """Which weights are scored: ``final``, or ``best:<split>`` on a validation split."""
    seed: int = field(default=0, metadata=NOT_IDENTITY)
    """Initialisation, data order and dropout."""
    source: Node = field(default=Node({}, ""), compare=False, repr=False)
    """What the config was read from, where an error's line is looked up; no part of the config."""

    best_prefix: ClassVar[str] = "best:"

    def __post_init__(self) -> None:
        check_seed(self, "seed", self.seed, "must")
        if self.select != "final" and not self.selection_split:
            hint = nearest(self.select, ("final",))
            refuse(self, "select", f"expected final or best:<split>{hint}")

    @property
    def selection_split(self) -> str | None:
        """The split whose best score chooses the weights; None under ``select: final``."""
        prefix, colon, split = self.select.partition(":")
        return split if prefix + colon == self.best_prefix and split else None

    @property
    def scored_weights(self) -> str:
        """The name that the scored weights have in a checkpoint: ``model``, ``ema``, ``best``."""
        return "best" if self.selection_split is not None else self.last_weights

    @property
    def last_weights(self) -> str:
        """The name of those weights of the checkpoint's own step that a run would score."""
        return "ema" if self.train.ema else "model"

    def error(self, path: str, value: Any, expected: str) -> ConfigError:
        """Return the one-line error for a value that only building the run shows to be wrong."""
        place = self.source.find(path).place
        return ConfigError(expected, path=path, value=value, place=place)

    def located(self, error: ValueError, section: str) -> ConfigError:
        """Return what a section's owner says of its options, with the line of the option."""
        return located(error, self.source.find(section), section)

    @contextlib.contextmanager
    def locating(self, section: str) -> Iterator[None]:
        """Give what a section's owner complains about in the context the line of the option.

        Raises:
            ConfigError: a ValueError was raised.
            tasks.DataMissing, tasks.DataDamaged: as raised, since they are about the machine and
                not about what the config says.
        """
        try:
            yield
        except (ConfigError, DataDamaged, DataMissing):
            raise
        except ValueError as error:
            raise self.located(error, section) from error

    def check_splits(self, splits: Sequence[str], selection_splits: Sequence[str]) -> None:
        """Check the names of splits that the run gives.

        Args:
            splits: Those that the task has.
            selection_splits: Those that ``select: best:<split>`` may name; no test splits.

        Raises:
            ConfigError: there is no such split, or it must not choose the weights.
        """
        for path in ("splits", "interval_splits"):
            for name in getattr(self.evaluate, path):
                if name not in splits:
                    raise self.error(
                        f"evaluate.{path}",
                        name,
                        f"expected one of {', '.join(splits)}{nearest(name, splits)}",
                    )
        limits = self.evaluate.rows_per_category
        for name, limit in limits.items() if isinstance(limits, dict) else ():
            if name not in splits:
                raise self.error(
                    f"evaluate.rows_per_category.{name}",
                    limit,
                    f"no such split; expected one of {', '.join(splits)}{nearest(name, splits)}",
                )
        chosen = self.selection_split
        if chosen is not None and chosen not in selection_splits:
            options = ["final", *(f"best:{name}" for name in selection_splits)]
            raise self.error(
                "select",
                self.select,
                f"expected one of {', '.join(options)}{nearest(self.select, options)}"
                + (" (a test split must not choose the weights)" if chosen in splits else ""),
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data, in the order of the fields."""
        # Not dataclasses.asdict, whose deep copies make up most of the time of a large grid.
        return {
            "task": dict(self.task),
            "model": self.model.to_dict(),
            "train": dict(vars(self.train))
            | {name: dict(vars(getattr(self.train, name))) for name in ("repeats", "objective")},
            "evaluate": dict(vars(self.evaluate)),
            "match": dict(vars(self.match)),
            "select": self.select,
            "seed": self.seed,
        }

    def identity(self, data_hash: str) -> dict[str, Any]:
        """Return what makes two runs the same run, as plain data.

        Covered is everything that changes the result, with defaults filled in, so that writing a
        default out changes nothing and changing a default in the code does: the task with the hash
        of its data, the model, ``train``, ``evaluate`` and ``select``. Left out are the fields
        marked ``NOT_IDENTITY``, names, and where data lies: its hash says what lies there.

        ``train.device`` is covered as written: ``auto`` is one identity on every machine, so that a
        sweep planned on a login node finds its directories on the compute nodes, while ``cpu`` and
        ``cuda`` asked for by name are two, since their last bits differ. ``train.num_threads`` is
        covered for the same reason.

        Raises:
            OptionError: see ``Task.identity``.
        """
        data = self.to_dict()
        name = data["task"].pop("name")
        data["task"] = {"name": name} | tasks.task_class(name).identity(data["task"])
        owners = ((self, data), (self.model, data["model"]), (self.train, data["train"]))
        for owner, section in owners:
            for entry in dataclasses.fields(owner):
                if entry.metadata == NOT_IDENTITY:
                    del section[entry.name]
        if self.match.training_flops is not None:
            del data["train"]["steps"]  # which follow from it
        return data | {"data_hash": data_hash}

    def hash(self, data_hash: str) -> str:
        """Return the 8 hexadecimal digits that name a run's directory.

        Args:
            data_hash: ``Task.data_hash()``.
        """
        text = json.dumps(self.identity(data_hash), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Many runs: variants × parameters × seeds."""

    name: str
    """Directory under runs/."""
    base: dict[str, Any]
    """A run, which every variant changes."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The models compared: name → changes to base."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Grid in W&B's form: dotted key → {value: x} or {values: [x, y]}."""
    seeds: list[int] | int = 1
    """A list of seeds, or how many (0, 1, …), up to 1,000."""
    exclude: list[dict[str, Any]] = field(default_factory=list)
    """Grid points left out: every key given must match; ``variant`` is a key too."""
    baseline: str | None = None
    """Variant that the others are tested against; default: the first."""
    ours: list[str] = field(default_factory=list)
    """Variants that the paper does not have: the plan and the report say so."""
    headline: dict[str, Any] = field(default_factory=dict)
    """{split, metric} of the main column; default: the last split's exact match,
    accuracy or bits per byte."""
    cluster: dict[str, Any] = field(default_factory=dict)
    """Options of clusters, {slurm: {...}, ray: {...}}: no part of what a run is; docs/clusters.md
    lists them."""

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int) and self.seeds > MOST_COUNTED:
            expected = f"is how many seeds (0, 1, …); above {MOST_COUNTED:,} give a list of them"
            refuse(self, "seeds", f"{expected}, as [{self.seeds}] for this one")
        seeds = self.seed_list
        if not seeds:
            refuse(self, "seeds", "must be at least 1, or a list of seeds")
        for seed in seeds:
            check_seed(self, "seeds", seed, "a seed must")
        if len(set(seeds)) != len(seeds):
            refuse(self, "seeds", "one is given twice")

    @property
    def seed_list(self) -> list[int]:
        """The seeds, counted out."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


def located(error: ValueError, node: Node, path: str) -> ConfigError:
    """Return what a class says of its options as the error of the node that it is about.

    Args:
        error: With the data ``option`` (dotted, from ``path`` or from the top), ``value`` and
            ``expected``; any other is about all of the mapping.
        node: The mapping that the class was built from.
        path: Dotted path of the mapping.
    """
    option = getattr(error, "option", None)
    if option is None:
        return ConfigError(str(error), path=path, place=node.place)
    option = option.removeprefix(f"{path}.")
    return ConfigError(
        error.expected,  # type: ignore[attr-defined]
        path=f"{path}.{option}" if path else option,
        value=error.value,  # type: ignore[attr-defined]
        place=node.find(option).place,
    )
