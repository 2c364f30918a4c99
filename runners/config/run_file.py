"""A run's file: read, included beneath others, overridden, checked, and written again.

Each field's type hint says what a value may be. ``task`` and ``model`` are open sections, checked
by those who own their options. msgspec would convert as strictly, but it tells what is wrong and
where only in English, while the line of a value is found by its path.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeut.options import OptionError
from runners.config import yaml_nodes
from runners.config.schema import ConfigError, ModelSection, RunConfig, SweepConfig, located
from runners.config.shipped import find_config
from runners.config.yaml_nodes import Node, merge, nest, override, parse_scalar
from tasks.base.options import closest, is_of_type, nearest, type_words

if TYPE_CHECKING:
    from moeut.config import Form

FORMS: dict[str, tuple[Form, ...]] = {
    "sequence_to_sequence": ("encoder_decoder", "decoder_lm"),
    "classification": ("encoder_classifier",),
    "language_modelling": ("decoder_lm",),
    "position_labelling": ("encoder_labeller", "decoder_lm"),
    "causal_labelling": ("decoder_lm",),
}
"""Model forms that serve a kind of task, the default first."""


def read_run(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run's file, then the overrides ``key=value`` over it.

    Args:
        path: YAML file with the fields of ``RunConfig``; ``base: other.yaml`` includes another.
            Or the name of one that ships.
        overrides: Dotted paths with values, for example ``train.steps=100``.

    Raises:
        ConfigError: one line that says where, what, and what is allowed.
    """
    path = find_config(path)
    node = load_run_node(yaml_nodes.read(path), path)
    for text in overrides:
        node = override(node, *yaml_nodes.parse_override(text))
    return build_run(node, SectionChecker())


def build_run(node: Node, checker: SectionChecker) -> RunConfig:
    """Build and check a run from its merged node.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or options that do not fit together.
    """
    known = list(hints(RunConfig))
    for key, child in node.value.items():
        if key not in known:
            is_sweeps = key in hints(SweepConfig)
            hint = " (that is a sweep's key: python -m runners.sweep)" if is_sweeps else ""
            raise unknown_key(child, key, known, f"a run{hint} takes")
    values = _fields(RunConfig, node, "", owner="a run", skip=("task", "model"))
    task, kind = checker.task(node.value["task"])
    budgets = values["match"].of_model if "match" in values else ()
    model = checker.model(node.value["model"], kind, budgets)
    try:
        return RunConfig(task=task, model=model, **values, source=node)
    except ValueError as error:
        raise located(error, node, "") from error


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


def difference(before: str, after: str) -> str:
    """Return the lines in which two configs differ, such as ``-seed: 1; +seed: 2``."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "; ".join(
        line[0] + line[1:].strip() for line in lines if not line.startswith(("---", "+++", "@@"))
    )


# --- open sections ----------------------------------------------------------------------


class SectionChecker:
    """Checks sections and remembers those that passed, since the runs of a sweep share most."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[dict[str, Any], str]] = {}
        self._models: dict[str, ModelSection] = {}

    def task(self, node: Node) -> tuple[dict[str, Any], str]:
        """Return the name and every option of a task, defaults filled in, and the task's kind.

        Raises:
            ConfigError: an unknown task or option, or what the task's own checks say.
        """
        key = json.dumps(node.plain(), sort_keys=True)
        if key not in self._tasks:
            self._tasks[key] = _check_task(node)
        return self._tasks[key]

    def model(self, node: Node, kind: str, budgets: tuple[str, ...] = ()) -> ModelSection:
        """Return the model that a section describes.

        Args:
            node: The ``model`` section.
            kind: Kind of the task, which decides the form.
            budgets: What of ``match`` the model is sized to.

        Raises:
            ConfigError: an unknown architecture or option, or sizes that do not fit together.
        """
        key = json.dumps([kind, node.plain(), budgets], sort_keys=True)
        if key not in self._models:
            self._models[key] = _check_model(node, kind, budgets)
        return self._models[key]


def _check_task(node: Node) -> tuple[dict[str, Any], str]:
    import tasks

    if not isinstance(node.value, dict):
        is_name = node.value in tuple(tasks.TASKS)
        meant = f"; write task: {{name: {node.value}}}" if is_name else ""
        raise wrong_value(node, "task", f"a mapping{meant}")
    names = ", ".join(tasks.TASKS)
    options = dict(node.value)
    name = options.pop("name", None)
    if name is None:
        raise ConfigError(f"missing; expected one of {names}", path="task.name", place=node.place)
    if not isinstance(name.value, str) or name.value not in tasks.TASKS:
        raise wrong_value(name, "task.name", f"one of {names}", tasks.TASKS)
    cls = tasks.task_class(name.value)
    owner = f"task {name.value}"
    task = build(cls, Node(options, node.place), "task", owner=owner)
    return {"name": name.value} | _options_of(task), task.kind


def _options_of(task: Any) -> dict[str, Any]:
    """Return the values of a task's options as plain data, in their order."""
    return {f.name: _plain(getattr(task, f.name)) for f in dataclasses.fields(task) if f.init}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _check_model(node: Node, kind: str, budgets: tuple[str, ...]) -> ModelSection:
    # At the first model, since --help of a command needs no torch.
    from moeut import architectures
    from moeut.design import Blueprint

    if not isinstance(node.value, dict):
        raise wrong_value(node, "model", "a mapping")
    given = dict(node.value)
    known = ("architecture", "preset", "form", *hints(Blueprint))
    for key, child in given.items():
        if key not in known:
            from runners.config.renamed import refuse_renamed

            refuse_renamed(key, child)
            raise unknown_key(child, f"model.{key}", known, "model takes")
    name = given.get("preset") or given.get("architecture")
    if name is None:
        names = ", ".join(architectures.ARCHITECTURES)
        expected = f"missing (or preset); expected one of {names}"
        raise ConfigError(expected, path="model.architecture", place=node.place)
    form = given.pop("form", Node(FORMS[kind][0], node.place))
    if form.value not in FORMS[kind]:
        expected = f"one of {', '.join(FORMS[kind])} for a {kind} task"
        raise wrong_value(form, "model.form", expected, FORMS[kind])
    _refuse_encoder_depth(given.get("encoder_depth"), form.value)
    section = Node(given, node.place).plain()
    try:
        blueprint = architectures.blueprint(section, budgets=budgets)
    except OptionError as error:
        # What the preset or the architecture itself says is found where that is named.
        at = node if error.option.partition(".")[0] in given else Node({}, name.place)
        meant = spelling(error.value)
        error = OptionError(error.option, error.value, error.expected + meant)
        raise located(error, at, "model") from None
    architecture = section.get("architecture")
    if not architecture:
        from moeut.presets import PRESETS

        architecture = PRESETS[name.value]["architecture"]
    return ModelSection(
        architecture=architecture,
        form=form.value,
        blueprint=blueprint,
    )


def _refuse_encoder_depth(node: Node | None, form: str) -> None:
    """Raise ConfigError for a depth of an encoder where there is no encoder beside a decoder.

    A blueprint drops the depth that equals ``depth``, so no later check would find it.
    """
    if node is not None and node.value is not None and form != "encoder_decoder":
        raise ConfigError(
            f"has no effect with form={form!r}, only with encoder_decoder",
            path="model.encoder_depth",
            value=node.plain(),
            place=node.place,
        )


# --- values of a declared type ----------------------------------------------------------


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Return the type hints of a dataclass's keys, by name, in order.

    A field that does not count in comparisons is no key.
    """
    resolved = typing.get_type_hints(cls)
    return {
        field.name: resolved[field.name]
        for field in dataclasses.fields(cls)
        if field.init and field.compare
    }


@functools.cache
def _required(cls: type) -> tuple[str, ...]:
    missing = dataclasses.MISSING
    return tuple(
        field.name
        for field in dataclasses.fields(cls)
        if field.init and field.default is missing and field.default_factory is missing
    )


def build(cls: type, node: Node, path: str, *, owner: str = "") -> Any:
    """Build the dataclass ``cls`` from a mapping.

    Args:
        node: Mapping of field names to values.
        path: Dotted path of the mapping, for messages.
        owner: Who takes these options, for the message about an unknown one.

    Raises:
        ConfigError: an unknown key, a missing field, a wrong type, or what the class's own checks
        say.
    """
    values = _fields(cls, node, path, owner=owner)
    try:
        return cls(**values)
    except ValueError as error:
        raise located(error, node, path) from error


def _fields(
    cls: type, node: Node, path: str, *, owner: str = "", skip: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values of the fields given in ``node``; those in ``skip`` only have to be there.

    Raises:
        ConfigError: an unknown key, a missing field, or a wrong type.
    """
    if not isinstance(node.value, dict):
        raise wrong_value(node, path, "a mapping")
    known = hints(cls)
    prefix = f"{path}." if path else ""
    for key, child in node.value.items():
        if key not in known:
            raise unknown_key(child, prefix + key, known, f"{owner} takes" if owner else "")
    for name in _required(cls):
        if name not in node.value:
            where = f"; {owner} needs it" if owner else ""
            raise ConfigError(f"missing{where}", path=prefix + name, place=node.place)
    given = ((key, child) for key, child in node.value.items() if key not in skip)
    return {key: convert(child, known[key], prefix + key) for key, child in given}


def convert(node: Node, hint: Any, path: str) -> Any:
    """Return the node's value as the type ``hint``: 3 as 3.0, a list as a tuple where it says so.

    Raises:
        ConfigError: a value of another type; nothing else is turned into something else.
    """
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), node, path)
    value = node.plain()
    if is_of_type(value, hint):
        return _as_declared(value, hint)
    kinds = _alternatives(hint)
    for child, item, where in _parts(node, kinds, path):
        convert(child, item, where)
    words = [str(word) for kind in kinds for word in typing.get_args(kind)]
    meant = spelling(value, kinds) or nearest(value, words)
    raise wrong_value(node, path, type_words(hint) + meant)


def _parts(node: Node, kinds: Collection[Any], path: str) -> Iterator[tuple[Node, Any, str]]:
    """Yield what a list or a mapping holds, with the type and the path of each."""
    for kind in kinds:
        origin, items = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(node.value, list) and origin in (list, tuple):
            items = items * len(node.value) if origin is list else items
            if len(items) == len(node.value):
                for index, (child, item) in enumerate(zip(node.value, items, strict=True)):
                    yield child, item, f"{path}[{index}]"
        elif isinstance(node.value, dict) and origin is dict:
            for key, child in node.value.items():
                yield child, items[1], f"{path}.{key}"


def _as_declared(value: Any, hint: Any) -> Any:
    """Return a value of the type ``hint``, converted."""
    kinds = _alternatives(hint)
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    if isinstance(value, list):
        for kind in kinds:
            items = typing.get_args(kind)
            if typing.get_origin(kind) is tuple:
                return tuple(map(_as_declared, value, items))
            if typing.get_origin(kind) is list:
                return [_as_declared(item, items[0]) for item in value]
    return value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


# --- sentences --------------------------------------------------------------------------


def wrong_value(node: Node, path: str, expected: str, allowed: Iterable[str] = ()) -> ConfigError:
    """Return the error for a value that is not ``expected``; the nearest of ``allowed`` is
    named."""
    value = node.plain()
    hint = nearest(value, allowed) if isinstance(value, str) else ""
    return ConfigError(f"expected {expected}{hint}", path=path, value=value, place=node.place)


def unknown_key(node: Node, path: str, allowed: Iterable[str], what: str = "") -> ConfigError:
    """Return the error for the key at the end of ``path``, which is none of ``allowed``."""
    allowed = list(allowed)
    parent, _, key = path.rpartition(".")
    close = closest(key, allowed)
    meant = f"{parent}.{close}" if parent else close
    hint = "" if close is None else f"; did you mean {meant!r}?"
    names = ", ".join(allowed) if allowed else "no options"
    return ConfigError(
        f"unknown key; {what or 'expected one of'} {names}{hint}",
        path=path,
        value=node.plain(),
        place=node.place,
    )


def spelling(value: Any, kinds: Collection[Any] = (bool, int, float)) -> str:
    """Return ``; did you mean 12?`` for somebody who wrote ``012``, ``1_000`` or ``yes``, where a
    value of ``kinds`` was expected."""
    if not isinstance(value, str):
        return ""
    words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
    if bool in kinds and value.lower() in words:
        return f"; did you mean {words[value.lower()]}?"
    meant = parse_scalar(value.replace("_", "").lstrip("0"))
    if type(meant) in kinds and type(meant) in (int, float):
        return f"; did you mean {meant}?"
    return nearest(value, ("true", "false")) if bool in kinds else ""


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
        raise wrong_value(base, "base", "a mapping or the name of a YAML file")
    target = source.parent / base.value
    shown = {"path": "base", "value": base.value, "place": base.place}
    try:
        node = yaml_nodes.read(target)
    except ConfigError as error:
        raise ConfigError(str(error), **shown) from error
    if target.resolve() in seen:
        raise ConfigError("files include each other", **shown)
    if "base" in node.value and set(node.value) & (set(hints(SweepConfig)) - {"base"}):
        return include(node.value["base"], target, (*seen, target.resolve()))
    return load_run_node(node, target, seen)
