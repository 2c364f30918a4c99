"""The ``--help`` of the runners, generated from the docstrings below the config's fields."""

from __future__ import annotations

import dataclasses
import textwrap

from runners.config import typed
from runners.config.schema import EvaluateConfig, RunConfig, SweepConfig, TrainConfig
from runners.config.sections import FORMS
from runners.config.yaml_nodes import dump_inline
from tasks.base.options import Option, describe, type_words

WIDTH = 96


def describe_fields(cls: type, *, indent: int = 2, skip: tuple[str, ...] = ()) -> str:
    """Return one paragraph per key of a dataclass: name, what it takes, default, docstring."""
    described = describe(cls)
    paragraphs = []
    for name in typed.hints(cls):
        if name in skip:
            continue
        option = described[name]
        head = f"{name}: {type_words(option.type)}{_default(option)}"
        paragraphs.append(textwrap.indent(head, " " * indent))
        if option.doc:
            paragraphs.append(_wrap(option.doc, indent + 4))
    return "\n".join(paragraphs)


def _default(option: Option) -> str:
    if option.is_required:
        return " (required)"
    if dataclasses.is_dataclass(option.default):
        return ", below"
    return f" = {dump_inline(option.default)}"


def _wrap(text: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(text, WIDTH, initial_indent=margin, subsequent_indent=margin)


def _first_sentence(cls: type) -> str:
    text = " ".join((cls.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def run_help() -> str:
    """Return the reference of a run's config: every key, every task, every architecture."""
    import tasks
    from moeut import flat_architectures as architectures
    from moeut import flat_presets as presets

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
    for name in tasks.TASKS:
        cls = tasks.task_class(name)
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
