"""The two open sections of a run: ``task`` and ``model``, checked by those who own their
options."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from moeut.options import OptionError
from runners.config import typed
from runners.config.renamed import RENAMED
from runners.config.schema import ModelSection
from runners.config.typed import wrong_value
from runners.config.yaml_nodes import ConfigError, Node

if TYPE_CHECKING:
    from moeut.config import Form

FORMS: dict[str, tuple[Form, ...]] = {
    "sequence_to_sequence": ("encoder_decoder", "decoder_lm"),
    "classification": ("encoder_classifier",),
    "language_modelling": ("decoder_lm",),
}
"""Model forms that serve a kind of task, the default first."""


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

    def model(self, node: Node, kind: str) -> ModelSection:
        """Return the model that a section describes.

        Args:
            node: The ``model`` section.
            kind: Kind of the task, which decides the form.

        Raises:
            ConfigError: an unknown architecture or option, or sizes that do not fit together.
        """
        key = json.dumps([kind, node.plain()], sort_keys=True)
        if key not in self._models:
            self._models[key] = _check_model(node, kind)
        return self._models[key]


def _check_task(node: Node) -> tuple[dict[str, Any], str]:
    import tasks

    if not isinstance(node.value, dict):
        raise wrong_value(node, "task", "a mapping")
    names = ", ".join(tasks.TASKS)
    options = dict(node.value)
    name = options.pop("name", None)
    if name is None:
        raise ConfigError(f"missing; expected one of {names}", path="task.name", place=node.place)
    if not isinstance(name.value, str) or name.value not in tasks.TASKS:
        raise wrong_value(name, "task.name", f"one of {names}", tasks.TASKS)
    cls = tasks.task_class(name.value)
    owner = f"task {name.value}"
    task = typed.build(cls, Node(options, node.place), "task", owner=owner)
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


def _check_model(node: Node, kind: str) -> ModelSection:
    from moeut import architectures  # at the first model, since --help of a command needs no torch

    if not isinstance(node.value, dict):
        raise wrong_value(node, "model", "a mapping")
    given = dict(node.value)
    _refuse_flat(given)
    name = given.get("preset") or given.get("architecture")
    if name is None:
        names = ", ".join(architectures.ARCHITECTURES)
        expected = f"missing (or preset); expected one of {names}"
        raise ConfigError(expected, path="model.architecture", place=node.place)
    form = given.pop("form", Node(FORMS[kind][0], node.place))
    if form.value not in FORMS[kind]:
        expected = f"one of {', '.join(FORMS[kind])} for a {kind} task"
        raise wrong_value(form, "model.form", expected, FORMS[kind])
    if "match_parameters" in given:
        typed.convert(given["match_parameters"], int | None, "model.match_parameters")
    section = Node(given, node.place).plain()
    try:
        blueprint = architectures.blueprint(section)
    except OptionError as error:
        # What the preset or the architecture itself says is found where that is named.
        at = node if error.option.partition(".")[0] in given else Node({}, name.place)
        meant = typed.spelling(error.value)
        error = OptionError(error.option, error.value, error.expected + meant)
        raise typed.located(error, at, "model") from None
    architecture = section.get("architecture") or architectures.PRESETS[name.value]["architecture"]
    return ModelSection(
        architecture=architecture,
        form=form.value,
        match_parameters=section.get("match_parameters"),
        blueprint=blueprint,
    )


def _refuse_flat(given: dict[str, Node]) -> None:
    """Raise ConfigError for a key of the flat form, which named no block."""
    for key, child in given.items():
        if key in RENAMED:
            raise ConfigError(
                f"renamed; write {RENAMED[key]}",
                path=f"model.{key}",
                value=child.plain(),
                place=child.place,
            )
