"""The ``--help`` of the runners, generated from the docstrings below the config's fields.

Options of models stand beside modules of torch, for which there is a stand-in here.
"""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from typing import TYPE_CHECKING, Any

from runners.config.match import MatchConfig
from runners.config.objective import ObjectiveConfig
from runners.config.repeats import RepeatsConfig
from runners.config.run_file import FORMS
from runners.config.schema import (
    EvaluateConfig,
    ModelSection,
    RunConfig,
    SweepConfig,
    TrainConfig,
)
from runners.config.yaml_nodes import dump_inline
from runners.process.stand_in import torch_left_out
from tasks.base.options import Option, describe, field_docstrings, type_words

if TYPE_CHECKING:
    from moeut.options import Options

WIDTH = 96


def run_help() -> str:
    """Return the reference of a run's config: every key, every task, every kind of block."""
    return "\n".join(
        [
            "A run's file (YAML); any key can be given as key=value, for example train.steps=100",
            "",
            describe_fields(RunConfig, skip=("source",)),
            "",
            "train:",
            describe_fields(TrainConfig),
            "",
            "train.repeats:",
            describe_fields(RepeatsConfig),
            "",
            "train.objective:",
            describe_fields(ObjectiveConfig),
            "",
            "evaluate:",
            describe_fields(EvaluateConfig),
            "",
            "match:",
            describe_fields(MatchConfig),
            "",
            "task:",
            *_tasks(),
            "",
            "model:",
            *_model_without_torch(),
        ]
    )


def sweep_help() -> str:
    """Return the reference of a sweep's config, which ends with that of its base."""
    return "\n".join(
        [
            "A sweep's file (YAML); key=value changes it: seeds=2, or train.steps=100 for all runs",
            "",
            describe_fields(SweepConfig),
            "",
            "base: " + run_help(),
        ]
    )


def describe_fields(cls: type, *, indent: int = 2, skip: tuple[str, ...] = ()) -> str:
    """Return one paragraph per field of a dataclass: name, what it takes, default, docstring."""
    paragraphs = []
    for name, option in describe(cls).items():
        if name not in skip:
            words = "a mapping" if _is_section(option.type) else type_words(option.type)
            paragraphs += _paragraph(f"{name}: {words}{_default(option)}", option.doc, indent)
    return "\n".join(paragraphs)


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _default(option: Option) -> str:
    if option.is_required:
        return " (required)"
    return ", below" if _is_section(type(option.default)) else f" = {dump_inline(option.default)}"


def _paragraph(head: str, doc: str, indent: int) -> list[str]:
    lines = [textwrap.indent(head, " " * indent)]
    return [*lines, _wrap(doc, indent + 4)] if doc else lines


def _wrap(text: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(text, WIDTH, initial_indent=margin, subsequent_indent=margin)


def _first_sentence(documented: Any) -> str:
    text = " ".join((documented.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def _tasks() -> list[str]:
    import tasks

    paragraphs = []
    for name in tasks.TASKS:
        cls = tasks.task_class(name)
        paragraphs += [f"  name: {name}", _wrap(_first_sentence(cls), 4)]
        paragraphs.append(describe_fields(cls, indent=6))
    return paragraphs


def _model_without_torch() -> list[str]:
    with torch_left_out():
        return _model()


def _model() -> list[str]:
    from moeut import architectures
    from moeut.design import Blueprint
    from moeut.presets import PRESETS

    paragraphs = ["  architecture: one of these, for what is left out below"]
    for name, defaults in architectures.ARCHITECTURES.items():
        paragraphs += _paragraph(f"{name}:", _first_sentence(defaults), 4)
        paragraphs.append(_wrap(dump_inline(defaults()), 8))
    presets = " | ".join(PRESETS)
    paragraphs += _paragraph("preset: one of these instead, with any key over it", presets, 2)
    docs = field_docstrings(ModelSection)
    forms = "; ".join(f"{' or '.join(forms)} for {kind}" for kind, forms in FORMS.items())
    paragraphs += _paragraph(f"form: the first of {forms}", docs["form"], 2)
    return paragraphs + _options(Blueprint, 2)


def _options(cls: type[Options], indent: int) -> list[str]:
    """Return the options of a part of a model, those of its parts and their kinds below them."""
    from moeut.options import Options, is_derived, kinds_of

    paragraphs = []
    for name, option in describe(cls).items():
        kinds = kinds_of(cls, name)
        part = next((kind for kind in _alternatives(option.type) if _is_section(kind)), None)
        if kinds is not None:
            paragraphs += _paragraph(f"{name}: one of {', '.join(kinds)}", option.doc, indent)
            for kind, chosen in kinds.items():
                head = f"kind: {kind}"
                paragraphs += _paragraph(head, _first_sentence(chosen), indent + 4)
                paragraphs += _options(chosen, indent + 8)
        elif part is not None and issubclass(part, Options):
            is_optional = option.default is None
            words = "a mapping or null = null" if is_optional else "a mapping"
            paragraphs += _paragraph(f"{name}: {words}", option.doc, indent)
            if not is_optional:
                paragraphs += _options(part, indent + 4)
        else:
            left_out = is_derived(cls, name) or option.is_required  # the architecture has it
            default = "" if left_out else _default(option)
            paragraphs += _paragraph(
                f"{name}: {type_words(option.type)}{default}", option.doc, indent
            )
    return paragraphs


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) or (kind,)
