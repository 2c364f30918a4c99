"""The config tree of a run and of a sweep.

Every field's docstring is what ``--help`` prints. ``task`` and ``model`` are open sections: their
keys are the options of the chosen task (``tasks.TASKS``) and architecture
(``moeut.ARCHITECTURES``), checked there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from runners.config import typed, yaml_nodes
from runners.config.sections import SectionChecker, plain
from runners.config.yaml_nodes import ConfigError, Node, show
from tasks.base.options import nearest

__all__ = [
    "ConfigError",
    "EvaluateConfig",
    "RunConfig",
    "SweepConfig",
    "TrainConfig",
    "from_yaml",
    "read_run",
    "to_yaml",
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained."""

    steps: int = 1000
    """Updates of the weights."""
    batch_size: int = 128
    """Sequences, or windows of text, per update, over all accumulated parts and all ranks."""
    tokens_per_batch: int | None = None
    """Upper bound on padded target + source tokens per update; length-bucketed batches fill it.
    Replaces batch_size where given."""
    accumulate: int = 1
    """Parts into which each rank's share of a batch is split to save memory; gradients are those
    of the whole batch."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Adam, or Adam with decoupled weight decay."""
    learning_rate: float = 1e-3
    """Peak learning rate; under noam the factor in front of 1/sqrt(d_model)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and the second moment."""
    epsilon: float = 1e-8
    """What Adam adds to the root of the second moment."""
    weight_decay: float = 0.0
    """Weight decay, on every parameter: an L2 penalty under adam, decoupled under adamw."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; null turns clipping off."""
    schedule: Literal["constant", "linear", "cosine", "cosine_paper", "noam"] = "constant"
    """Shape after the warm-up. cosine_paper is MoEUT's: the cosine is as long as the run but begins
    after the warm-up, so that it ends before its floor by as many steps."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises in a line from 0 to its peak."""
    final_learning_rate_ratio: float = 0.1
    """Floor of linear and both cosines, as a share of the peak."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all tokens, in training's loss."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, with weights and optimiser in float32; on a GPU the products that stay in
    float32, those of routers, are in TF32."""
    compile: bool = False
    """Run the model through torch.compile."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass instead of keeping their activations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks under torchrun share the work: ddp keeps weights and optimiser on each,
    fsdp (FSDP2) a part of them; one process is neither."""
    num_threads: int = 1
    """CPU threads of one run; part of its identity, since it decides the last bits."""
    deterministic: bool = True
    """Only deterministic GPU kernels, so that a resumed run is bitwise the same."""
    log_interval: int = 50
    """Updates between rows of metrics.jsonl: loss (in nats), gradient norm and learning rate; of
    language models also perplexity, tokens/s, model FLOPs utilisation (null where the device's peak
    is unknown, as of every CPU), peak memory in bytes, and each router's dead experts and
    entropy."""
    checkpoint_interval: int = 200
    """Updates between checkpoints, of which the last two are kept."""
    tensorboard: bool = False
    """Write the rows of metrics.jsonl for TensorBoard too, into the run's directory."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "batch_size", "tokens_per_batch", "accumulate", "num_threads")
        _at_least(self, 1, "log_interval", "checkpoint_interval")
        _at_least(self, 0, "warmup_steps", "weight_decay", "final_learning_rate_ratio")
        _above_zero(self, "learning_rate", "epsilon", "clip_norm")
        _below_one(self, "label_smoothing")
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(
                    f"betas={list(self.betas)}: number {index + 1} must be at least 0 and below 1"
                )
        if self.accumulate > self.batch_size and self.tokens_per_batch is None:
            raise ValueError(
                f"accumulate={self.accumulate}: must be at most batch_size={self.batch_size}"
            )
        if self.schedule == "noam" and self.warmup_steps < 1:
            raise ValueError(f"warmup_steps={self.warmup_steps}: schedule noam needs at least 1")
        if (
            self.schedule in ("linear", "cosine", "cosine_paper")
            and self.warmup_steps >= self.steps
        ):
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: must be below steps={self.steps} "
                f"under schedule {self.schedule}"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, when."""

    splits: list[str] = field(default_factory=list)
    """Splits scored at the end; empty: every split but train."""
    interval: int | None = None
    """Steps between evaluations of interval_splits on the way; null: only at the end."""
    interval_splits: list[str] = field(default_factory=list)
    """Splits scored on the way; empty: the in-distribution split."""
    repeats: list[int] = field(default_factory=list)
    """Further depths (num_repeats) at which a shared model is scored at the end, besides its
    own."""
    rows_per_category: int | dict[str, int] | None = None
    """Score only so many rows of each category of a split, chosen by hash, or so many windows of
    text, evenly spread; tables say so. One number for every split, or {split: number}, where a
    split that is not named is scored whole."""
    batch_size: int = 256
    """Sequences decoded at once; of text as many windows are read as their logits have room for."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "interval", "batch_size")
        limits = self.rows_per_category
        for limit in limits.values() if isinstance(limits, dict) else [limits]:
            if limit is not None and limit < 1:
                raise ValueError(f"rows_per_category={limits}: must be at least 1")
        for number in self.repeats:
            if number < 1:
                raise ValueError(f"repeats={self.repeats}: each must be at least 1")
        if self.interval_splits and self.interval is None:
            raise ValueError(
                f"interval_splits={self.interval_splits}: has no effect without interval, the "
                "number of steps between evaluations"
            )
        for name in ("splits", "interval_splits", "repeats"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}={values}: one is given twice")

    def rows_of(self, split: str) -> int | None:
        """Return how many rows of each category of a split are scored; None: all of them."""
        limits = self.rows_per_category
        return limits.get(split) if isinstance(limits, dict) else limits


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    task: dict[str, Any]
    """name and the options of that task; see ``python -m tasks.show --help``."""
    model: dict[str, Any]
    """architecture and its options; or preset, whose options all others change."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is measured."""
    select: str = "final"
    """Which weights are scored: ``final``, or ``best:<split>`` on a validation split."""
    seed: int = 0
    """Initialisation, data order and dropout."""

    best_prefix: ClassVar[str] = "best:"

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed")
        if self.select != "final" and not self.selection_split:
            raise ValueError(
                f"select={self.select!r}: expected final or best:<split>"
                f"{nearest(self.select, ('final',))}"
            )

    @property
    def selection_split(self) -> str | None:
        """The split whose best score chooses the weights; None under ``select: final``."""
        prefix, colon, split = self.select.partition(":")
        return split if prefix + colon == self.best_prefix and split else None

    def place(self, path: str) -> str:
        """Return where the value at a dotted path, or the nearest above it, was written."""
        # No field: where a value was written is no part of the config.
        known: Mapping[str, str] = self.__dict__.get("_places", {})
        while path and path not in known:
            path = path.rpartition(".")[0]
        return known.get(path, "")

    def error(self, path: str, value: Any, expected: str) -> ConfigError:
        """Return the one-line error for a value that only building the run shows to be wrong."""
        place = self.place(path)
        prefix = f"{place}: " if place else ""
        return ConfigError(f"{prefix}{path}={show(value)}: {expected}")

    def check_splits(self, splits: list[str], selection_splits: list[str]) -> None:
        """Raise ConfigError if a split that the run names is not among the task's ``splits``.

        ``select: best:<split>`` is held to ``selection_splits``, which are no test splits.
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
        names = (f.name for f in dataclasses.fields(self))
        values = {name: getattr(self, name) for name in names}
        return {
            name: dict(vars(value)) if dataclasses.is_dataclass(value) else plain(value)
            for name, value in values.items()
        }


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
    """A list of seeds, or how many (0, 1, …)."""
    exclude: list[dict[str, Any]] = field(default_factory=list)
    """Grid points left out: every key given must match; ``variant`` is a key too."""
    baseline: str | None = None
    """Variant that the others are tested against; default: the first."""
    ours: list[str] = field(default_factory=list)
    """Variants that the paper does not have: the plan and the report say so."""
    headline: dict[str, Any] = field(default_factory=dict)
    """{split, metric} of the main column; default: the last split's exact match,
    accuracy or bits per byte."""

    def __post_init__(self) -> None:
        seeds = self.seed_list
        if not seeds:
            raise ValueError(f"seeds={self.seeds}: must be at least 1, or a list of seeds")
        if min(seeds) < 0:
            raise ValueError(f"seeds={self.seeds}: a seed must be at least 0")
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds={self.seeds}: one is given twice")

    @property
    def seed_list(self) -> list[int]:
        """The seeds, counted out."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


# --- checks -----------------------------------------------------------------------------


def _at_least(config: Any, minimum: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < float("inf"):
            finite = " and finite" if value == float("inf") else ""
            raise ValueError(f"{name}={value}: must be at least {minimum}{finite}")


def _above_zero(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: must be above 0")


def _below_one(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}: must be at least 0 and below 1")


# --- reading and writing a run ----------------------------------------------------------


def read_run(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run's file, then the overrides ``key=value`` over it.

    Args:
        path: YAML file with the fields of ``RunConfig``; ``base: other.yaml`` includes another.
        overrides: Dotted paths with values, for example ``train.steps=100``.

    Raises:
        ConfigError: one line that says where, what, and what is allowed.
    """
    node = load_run_node(yaml_nodes.read(path), Path(path))
    for text in overrides:
        node = override(node, *yaml_nodes.parse_override(text))
    return build_run(node, SectionChecker())


def build_run(node: Node, checker: SectionChecker) -> RunConfig:
    """Build and check a run from its merged node, and let it know where its values stand."""
    known = list(typed.hints(RunConfig))
    for key, child in node.value.items():
        if key not in known:
            hint = " (that is a sweep's key: python -m runners.sweep)" if key in _SWEEP_KEYS else ""
            raise yaml_nodes.unknown_key(child, key, known, f"a run{hint} takes")
    values = typed.fields(RunConfig, node, "", owner="a run")
    values["task"] = checker.task(node.value["task"])
    values["model"] = checker.model(node.value["model"], values["task"])
    try:
        config = RunConfig(**values)
    except ValueError as error:
        raise typed.relocate(error, node, "") from error
    object.__setattr__(config, "_places", places(node))
    return config


_SWEEP_KEYS = tuple(f.name for f in dataclasses.fields(SweepConfig))


def to_yaml(config: RunConfig) -> str:
    """Return YAML text that ``from_yaml`` reads back to an equal config."""
    return yaml_nodes.dump(config.to_dict())


def from_yaml(text: str, name: str = "config.yaml") -> RunConfig:
    """Read the resolved config of a run directory; ``name`` is the file's name in errors."""
    node = yaml_nodes.parse(text, name)
    if node is None or not isinstance(node.value, dict):
        raise ConfigError(f"{name}:1: expected a mapping of keys to values")
    return build_run(node, SectionChecker())


# --- nodes: dotted keys, merging, including ---------------------------------------------


def places(node: Node) -> dict[str, str]:
    """Return the place of every value below ``node`` by dotted path; the root's is ``""``."""
    result = {"": node.place}

    def walk(current: Node, prefix: str) -> None:
        for key, child in current.value.items():
            result[prefix + key] = child.place
            if isinstance(child.value, dict):
                walk(child, f"{prefix}{key}.")

    walk(node, "")
    return result


def nest(node: Node, path: str = "") -> Node:
    """Return a mapping with dotted keys spelled out: ``{a.b: 1}`` becomes ``{a: {b: 1}}``.

    Raises:
        ConfigError: one value is given both ways.
    """
    if not isinstance(node.value, dict):
        return node
    result = Node({}, node.place)
    for key, child in node.value.items():
        parts = key.split(".")
        if not all(parts):
            raise ConfigError(f"{child.place}: {path}{key}: expected words with dots between them")
        inner = nest(child, f"{path}{key}.")
        for part in reversed(parts):
            inner = Node({part: inner}, child.place)
        result = merge(result, inner, path, twice=True)
    return result


def merge(base: Node, change: Node, path: str = "", *, twice: bool = False) -> Node:
    """Return ``base`` with ``change`` over it, mappings merged key by key.

    ``twice``: both are from one mapping, so a value in both is an error.
    """
    if not (isinstance(base.value, dict) and isinstance(change.value, dict)):
        if twice:
            raise ConfigError(
                f"{change.place}: {path.rstrip('.')}: key given twice; first at {base.place}"
            )
        return change
    value = dict(base.value)
    for key, child in change.value.items():
        old = value.get(key)
        value[key] = child if old is None else merge(old, child, f"{path}{key}.", twice=twice)
    return Node(value, base.place)


def override(node: Node, path: str, value: Node) -> Node:
    """Return ``node`` with the value at a dotted path replaced; its checks come with building."""
    value = nest(value)
    for part in reversed(path.split(".")):
        value = Node({part: value}, value.place)
    return merge(node, value)


def load_run_node(node: Node, source: Path, seen: tuple[Path, ...] = ()) -> Node:
    """Return a run's mapping with its ``base: file.yaml`` read and merged under it.

    A base that is a sweep lends its own base.

    Raises:
        ConfigError: files that include each other, or a base that is neither.
    """
    seen = (*seen, source.resolve())
    node = nest(node)
    if "base" not in node.value:
        return node
    value = dict(node.value)
    base = value.pop("base")
    return merge(include(base, source, seen), Node(value, node.place))


def include(base: Node, source: Path, seen: tuple[Path, ...] = ()) -> Node:
    """Return the run that ``base`` stands for: a mapping, or the name of a file beside
    ``source``."""
    if isinstance(base.value, dict):
        return load_run_node(base, source, seen[:-1])
    if not isinstance(base.value, str):
        raise yaml_nodes.wrong_value(base, "base", "a mapping or the name of a YAML file")
    target = source.parent / base.value
    if target.resolve() in seen:
        raise ConfigError(f"{base.place}: base={base.value!r}: files include each other")
    try:
        node = yaml_nodes.read(target)
    except ConfigError as error:
        raise ConfigError(f"{base.place}: base={base.value!r}: {error}") from error
    if "base" in node.value and set(node.value) & (set(_SWEEP_KEYS) - {"base"}):
        return include(node.value["base"], target, (*seen, target.resolve()))
    return load_run_node(node, target, seen)
