"""The ``--help`` of the runners, generated from the docstrings below the config's fields."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
import typing
from typing import Any

from runners.config import typed
from runners.config.schema import EvaluateConfig, RunConfig, SweepConfig, TrainConfig
from runners.config.sections import FORMS
from tasks.base.options import field_docstrings

WIDTH = 96


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, inherited ones included.

    Python drops such strings when it compiles, so they are read from the class's source.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= field_docstrings(base)
    return docs


def describe_fields(cls: type, *, indent: int = 2, skip: tuple[str, ...] = ()) -> str:
    """Return one paragraph per field: name, type, default, docstring."""
    docs, hints = field_docs(cls), typed.hints(cls)
    paragraphs = []
    for field in dataclasses.fields(cls):
        if not field.init or field.name in skip:
            continue
        head = f"{field.name}: {type_name(hints[field.name])}{_default(field)}"
        paragraphs.append(textwrap.indent(head, " " * indent))
        if field.name in docs:
            paragraphs.append(_wrap(docs[field.name], indent + 4))
    return "\n".join(paragraphs)


def type_name(hint: Any) -> str:
    """Return a type hint as one writes it: ``adam | adamw``, ``int | null``, ``[float, float]``."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (list, tuple) and arguments:
        items = ["…" if item is Ellipsis else type_name(item) for item in arguments]
        return "[" + ", ".join(items) + (", …]" if origin is list else "]")
    if origin is dict or hint is dict:
        return "{key: value}"
    if dataclasses.is_dataclass(hint):
        return "{key: value}, below"
    if arguments:
        return " | ".join(type_name(argument) for argument in arguments)
    if hint in (type(None), None):
        return "null"
    return getattr(hint, "__name__", str(hint))


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        words = {None: "null", True: "true", False: "false"}
        shown = words[value] if value is None or isinstance(value, bool) else value
        return f" = {list(shown) if isinstance(shown, tuple) else shown}"
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return "" if dataclasses.is_dataclass(made) else f" = {made}"
    return " (required)"


def _wrap(text: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(text, WIDTH, initial_indent=margin, subsequent_indent=margin)


def _first_sentence(cls: type) -> str:
    text = " ".join((cls.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def run_help() -> str:
    """Return the reference of a run's config: every key, every task, every architecture."""
    import tasks
    from moeut import architectures, presets

    parts = [
        "A run's file (YAML); any key can be given as key=value, for example train.steps=100",
        "",
        describe_fields(RunConfig),
        "",
        "train:",
        describe_fields(TrainConfig),
        "",
        "evaluate:",
        describe_fields(EvaluateConfig),
        "",
        "task:",
    ]
    for name, cls in tasks.TASKS.items():
        parts.append(f"  name: {name}")
        parts.append(_wrap(_first_sentence(cls), 4))
        parts.append(describe_fields(cls, indent=6))
    parts += [
        "",
        "model:",
        "  form: " + " | ".join(form for forms in FORMS.values() for form in forms),
    ]
    parts.append(
        _wrap(
            "Default: encoder_decoder for sequence-to-sequence tasks (decoder_lm is the other "
            "choice), encoder_classifier for classification, decoder_lm for language modelling.",
            6,
        )
    )
    parts.append(
        _wrap("preset: one of these instead of an architecture, with any of its options over it", 2)
    )
    parts.append(_wrap(" | ".join(presets.PRESET_OPTIONS), 6))
    shared = _shared_fields(list(architectures.ARCHITECTURES.values()))
    options = next(iter(architectures.ARCHITECTURES.values()))
    others = tuple(f.name for f in dataclasses.fields(options) if f.name not in shared)
    parts.append("  of every architecture:")
    parts.append(describe_fields(options, indent=6, skip=others))
    for name, options in architectures.ARCHITECTURES.items():
        parts.append(f"  architecture: {name}")
        parts.append(_wrap(_first_sentence(options), 4))
        parts.append(describe_fields(options, indent=6, skip=shared))
    return "\n".join(parts)


def _shared_fields(classes: list[type]) -> tuple[str, ...]:
    """Return the fields that all classes have with one and the same default."""
    first, *rest = classes
    return tuple(
        field.name
        for field in dataclasses.fields(first)
        if all(
            any(
                other.name == field.name and other.default == field.default
                for other in dataclasses.fields(cls)
            )
            for cls in rest
        )
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
