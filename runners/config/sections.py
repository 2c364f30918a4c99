"""The two open sections of a run: ``task`` and ``model``, checked by those who own their
options."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from runners.config import typed
from runners.config.typed import wrong_value
from runners.config.yaml_nodes import ConfigError, Node
from tasks.base.options import nearest

FORMS: dict[str, tuple[str, ...]] = {
    "sequence_to_sequence": ("encoder_decoder", "decoder_lm"),
    "classification": ("encoder_classifier",),
    "language_modelling": ("decoder_lm",),
}
"""Model forms that serve a kind of task, the default first."""

_TRIAL_VOCABULARY = 8
"""Vocabulary size under which options are tried out before data is read; small, so that a budget
is never refused here that the real vocabulary allows."""


class SectionChecker:
    """Checks sections and remembers those that passed, since the runs of a sweep share most."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[dict[str, Any], str]] = {}
        self._models: dict[str, dict[str, Any]] = {}

    def task(self, node: Node) -> dict[str, Any]:
        """Return the name and every option of a task, defaults filled in.

        Raises:
            ConfigError: an unknown task or option, or what the task's own checks say.
        """
        key = json.dumps(node.plain(), sort_keys=True)
        if key not in self._tasks:
            self._tasks[key] = _check_task(node)
        return dict(self._tasks[key][0])

    def model(self, node: Node, task: dict[str, Any]) -> dict[str, Any]:
        """Return architecture, form and every option of a model, defaults filled in.

        Args:
            node: The ``model`` section.
            task: The checked ``task`` section, whose kind decides the form.

        Raises:
            ConfigError: an unknown architecture or option, or sizes that do not fit together.
        """
        kind = self._kind(task)
        key = json.dumps([kind, node.plain()], sort_keys=True)
        if key not in self._models:
            self._models[key] = _check_model(node, kind)
        return dict(self._models[key])

    def _kind(self, task: dict[str, Any]) -> str:
        for checked, kind in self._tasks.values():
            if checked == task:
                return kind
        raise KeyError("the task section was not checked here")


def plain(value: Any) -> Any:
    """Return an option's value as YAML can hold it."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return str(value)


def options_of(instance: Any) -> dict[str, Any]:
    """Return the values of a dataclass's init fields as plain data, in their order."""
    return {
        field.name: plain(getattr(instance, field.name))
        for field in dataclasses.fields(instance)
        if field.init
    }


def _named(node: Node, path: str, key: str, registry: dict[str, Any]) -> tuple[str, Node]:
    """Return the registered name under ``key`` and the rest of the section."""
    if not isinstance(node.value, dict):
        raise wrong_value(node, path, "a mapping")
    names = ", ".join(registry)
    if key not in node.value:
        other = " (or preset)" if path == "model" else ""
        expected = f"missing{other}; expected one of {names}"
        raise ConfigError(expected, path=f"{path}.{key}", place=node.place)
    name = node.value[key]
    if not isinstance(name.value, str) or name.value not in registry:
        hint = nearest(name.value, registry)
        raise wrong_value(name, f"{path}.{key}", f"one of {names}{hint}")
    rest = {other: child for other, child in node.value.items() if other != key}
    return name.value, Node(rest, node.place)


def _check_task(node: Node) -> tuple[dict[str, Any], str]:
    import tasks

    name, options = _named(node, "task", "name", tasks.TASKS)
    cls = tasks.task_class(name)
    values = typed.fields(cls, options, "task", owner=f"task {name}")
    try:
        task = cls(**values)
    except ValueError as error:
        raise typed.located(error, options, "task") from error
    return {"name": name} | options_of(task), task.kind


def _without_preset(node: Node) -> Node:
    """Return a model section with ``preset`` spelled out beneath what else the section says.

    The result is what the section would be without the preset, so both are one identity.
    """
    from moeut import flat_presets as presets

    if not isinstance(node.value, dict) or "preset" not in node.value:
        return node
    given = dict(node.value)
    preset = given.pop("preset")
    if not isinstance(preset.value, str) or preset.value not in presets.PRESET_OPTIONS:
        names = ", ".join(presets.PRESET_OPTIONS)
        raise wrong_value(preset, "model.preset", f"one of {names}", presets.PRESET_OPTIONS)
    if "architecture" in given:
        chosen = given["architecture"]
        expected = f"either architecture or preset, which is {preset.value!r} ({preset.place})"
        raise wrong_value(chosen, "model.architecture", expected)
    options = presets.preset_options(preset.value, **Node(given, node.place).plain())
    spelled = {name: Node(value, preset.place) for name, value in options.items()}
    return Node({**spelled, **given}, node.place)


def _check_model(node: Node, kind: str) -> dict[str, Any]:
    # Imported here: reading a config for --help or a report needs no torch.
    from moeut import flat_architectures as architectures

    node = _without_preset(node)
    name, options = _named(node, "model", "architecture", architectures.ARCHITECTURES)
    forms = FORMS[kind]
    form = options.value.pop("form", Node(forms[0], node.place))
    if form.value not in forms:
        raise wrong_value(form, "model.form", f"one of {', '.join(forms)} for a {kind} task", forms)
    cls = architectures.ARCHITECTURES[name]
    built = typed.build(cls, options, "model", owner=f"architecture {name}")
    try:
        architectures.from_options(
            built,
            form=form.value,
            vocabulary_size=_TRIAL_VOCABULARY,
            source_vocabulary_size=_TRIAL_VOCABULARY if form.value == "encoder_decoder" else None,
            num_classes=_TRIAL_VOCABULARY if form.value == "encoder_classifier" else None,
        )
    except ValueError as error:
        raise typed.located(error, options, "model") from error
    return {"architecture": name, "form": form.value} | options_of(built)
