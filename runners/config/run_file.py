"""A run's file: read, included beneath others, overridden, checked, and written again."""

from __future__ import annotations

from pathlib import Path

from runners.config import typed, yaml_nodes
from runners.config.merging import merge, nest, override
from runners.config.schema import ConfigError, RunConfig, SweepConfig
from runners.config.sections import SectionChecker
from runners.config.yaml_nodes import Node

_SWEEP_KEYS = tuple(typed.hints(SweepConfig))


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
    """Build and check a run from its merged node.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or options that do not fit together.
    """
    known = list(typed.hints(RunConfig))
    for key, child in node.value.items():
        if key not in known:
            hint = " (that is a sweep's key: python -m runners.sweep)" if key in _SWEEP_KEYS else ""
            raise typed.unknown_key(child, key, known, f"a run{hint} takes")
    values = typed.fields(RunConfig, node, "", owner="a run", skip=("task", "model"))
    task, kind = checker.task(node.value["task"])
    model = checker.model(node.value["model"], kind)
    try:
        return RunConfig(task=task, model=model, **values, source=node)
    except ValueError as error:
        raise typed.located(error, node, "") from error


def to_yaml(config: RunConfig) -> str:
    """Return YAML text that ``from_yaml`` reads back to an equal config."""
    return yaml_nodes.dump(config.to_dict())


def from_yaml(text: str, name: str = "config.yaml") -> RunConfig:
    """Read the resolved config of a run directory.

    Args:
        name: The file's name in errors.

    Raises:
        ConfigError: the text is not what ``to_yaml`` writes.
    """
    node = yaml_nodes.parse(text, name)
    if node is None or not isinstance(node.value, dict):
        raise ConfigError("expected a mapping of keys to values", place=f"{name}:1")
    return build_run(node, SectionChecker())


# --- including --------------------------------------------------------------------------


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
    ``source``.

    Raises:
        ConfigError: files that include each other, or a base that is neither.
    """
    if isinstance(base.value, dict):
        return load_run_node(base, source, seen[:-1])
    if not isinstance(base.value, str):
        raise typed.wrong_value(base, "base", "a mapping or the name of a YAML file")
    target = source.parent / base.value
    shown = {"path": "base", "value": base.value, "place": base.place}
    if target.resolve() in seen:
        raise ConfigError("files include each other", **shown)
    try:
        node = yaml_nodes.read(target)
    except ConfigError as error:
        raise ConfigError(str(error), **shown) from error
    if "base" in node.value and set(node.value) & (set(_SWEEP_KEYS) - {"base"}):
        return include(node.value["base"], target, (*seen, target.resolve()))
    return load_run_node(node, target, seen)
