"""A task's options: described from its dataclass fields, read from ``option=value`` words, checked.

Every message names the option as ``task.<option>=<value>``, says what is allowed, and gives the
nearest match where a word was misspelt.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Option:
    """One option of a task, as ``--help`` shows it."""

    name: str
    type: Any
    default: Any
    """``dataclasses.MISSING`` where the option must be given."""
    doc: str

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is dataclasses.MISSING


def nearest(value: object, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest allowed word, or an empty string."""
    match = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def field_docstrings(cls: type) -> dict[str, str]:
    """Return the string literal that stands under each annotated field of a class, on one line."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # a class made at run time has no source
        return {}
    body = tree.body[0].body  # type: ignore[attr-defined]
    documented = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            documented[statement.target.id] = " ".join(following.value.value.split())
    return documented


def describe(cls: type) -> dict[str, Option]:
    """Return the options of a task class by name, those of its bases first."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= field_docstrings(base)
    hints = typing.get_type_hints(cls)
    options = {}
    for entry in dataclasses.fields(cls):
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        options[entry.name] = Option(
            entry.name, hints[entry.name], default, docs.get(entry.name, "")
        )
    return options


def type_words(annotation: Any) -> str:
    """Return what a value of a type looks like, in words, for help and for messages."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(argument) for argument in arguments)
    if origin is list:
        return f"a list ({type_words(arguments[0])})" if arguments else "a list"
    if origin is tuple:
        return f"a list of {len(arguments)} ({type_words(arguments[0])})"
    if origin is dict or annotation is dict:
        return "a mapping"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    return names.get(annotation, str(annotation))


def is_of_type(value: Any, annotation: Any) -> bool:
    """Return whether a value has an option's type; true and false are not numbers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(is_of_type(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(is_of_type(item, arguments[0]) for item in value)
    if origin is tuple:
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(arguments)
            and all(is_of_type(item, kind) for item, kind in zip(value, arguments, strict=True))
        )
    if origin is dict:
        return isinstance(value, Mapping) and all(
            is_of_type(key, arguments[0]) and is_of_type(item, arguments[1])
            for key, item in value.items()
        )
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, annotation)


def check_names(task_name: str, cls: type, names: Iterable[str]) -> None:
    """Raise ValueError for an option that a task does not take, or for a required one left out."""
    options = describe(cls)
    given = list(names)
    for name in given:
        if name not in options:
            raise ValueError(
                f"task.{name}: unknown option; task {task_name!r} takes "
                f"{', '.join(options) or 'none'}{nearest(name, options)}"
            )
    for option in options.values():
        if option.is_required and option.name not in given:
            raise ValueError(
                f"task.{option.name}: task {task_name!r} needs it ({type_words(option.type)})"
            )


def check_types(task: Any) -> None:
    """Raise ValueError for a field of a task that does not have its declared type."""
    for option in describe(type(task)).values():
        value = getattr(task, option.name)
        if not is_of_type(value, option.type):
            choices = [
                choice
                for kind in (option.type, *typing.get_args(option.type))
                if typing.get_origin(kind) is Literal
                for choice in typing.get_args(kind)
                if isinstance(choice, str)
            ]
            raise ValueError(
                f"task.{option.name}={value!r}: expected {type_words(option.type)}"
                f"{nearest(value, choices)}"
            )


def require(task: Any, name: str, condition: bool, allowed: str) -> None:
    """Raise ValueError with an option's value and what is allowed, unless a condition holds."""
    if not condition:
        raise ValueError(f"task.{name}={getattr(task, name)!r}: must be {allowed}")


def parse_words(task_name: str, cls: type, words: Iterable[str]) -> dict[str, Any]:
    """Read ``option=value`` words from a command line into options of a task.

    The option's type decides how a value is read: text as it stands, everything else as JSON
    (``8``, ``0.5``, ``true``, ``null``, ``[1, 2]``). ``option.key=value`` fills a mapping.

    Raises:
        ValueError: a word without ``=``, an unknown or repeated option.
    """
    options = describe(cls)
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: expected option=value")
        name, _, key = name.removeprefix("task.").partition(".")
        check_names(task_name, cls, [name, *(o.name for o in options.values() if o.is_required)])
        value = _parse_value(text, options[name].type if not key else str)
        if key:
            mapping = values.setdefault(name, {})
            if not isinstance(mapping, dict) or key in mapping:
                raise ValueError(f"task.{name}.{key}={text}: given twice")
            mapping[key] = value
        elif name in values:
            raise ValueError(f"task.{name}={text}: given twice")
        else:
            values[name] = value
    return values


def _parse_value(text: str, annotation: Any) -> Any:
    kinds = (annotation, *typing.get_args(annotation))
    may_be_list = any(typing.get_origin(kind) is list for kind in kinds)
    if is_of_type(text, annotation) and not (may_be_list and text.startswith("[")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # check_types says what was expected
