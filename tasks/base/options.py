"""A task's options: described from its dataclass fields, read from ``option=value`` words, checked.

Every complaint about an option is an ``OptionError``, which carries the option, its value and the
allowed values as data.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LOCATION = {"location": True}
"""Metadata of an option that says where data lies: no part of a run's identity, which the content
decides by ``Task.data_hash``."""


CLOSE = 0.62
"""Likeness from which on a word may have been meant: that of ``cosine`` and ``none`` is 0.6."""


class OptionError(ValueError):
    """An option has a value that is not allowed: ``task.cutoff=99: must be between 1 and 40``."""

    def __init__(self, option: str, value: Any, expected: str) -> None:
        super().__init__(option, value, expected)
        self.option = option
        """Dotted path of the option: ``task.cutoff``, or ``task.other.hard`` inside a mapping."""
        self.value = value
        """``dataclasses.MISSING`` where a required option is left out."""
        self.expected = expected
        """The sentence that says what is allowed, with the nearest match where there is one."""

    def __str__(self) -> str:
        is_missing = self.value is dataclasses.MISSING
        shown = self.option if is_missing else f"{self.option}={self.value!r}"
        return f"{shown}: {self.expected}"


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


def closest(value: object, allowed: Iterable[str]) -> str | None:
    """Return the allowed word that may have been meant, if one is close."""
    return next(iter(difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=CLOSE)), None)


def nearest(value: object, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for an allowed word that is close, or an empty string."""
    match = closest(value, allowed)
    return "" if match is None else f"; did you mean {match!r}?"


def field_docstrings(cls: type) -> dict[str, str]:
    """Return the string literal that stands under each annotated field of a class, on one line."""
    try:
        path = inspect.getsourcefile(cls)
        return {} if path is None else _docstrings_in(path).get(cls.__qualname__, {})
    except (OSError, TypeError):  # a class made at run time has no source
        return {}


@functools.cache  # a file is parsed once for all classes in it, since that takes milliseconds
def _docstrings_in(path: str) -> dict[str, dict[str, str]]:
    """Return the docstrings of fields of all classes of a file, by the classes' qualified names."""
    found: dict[str, dict[str, str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = _documented(node.body)
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                visit(node.body, f"{prefix}{node.name}.<locals>.")

    visit(ast.parse(Path(path).read_text(encoding="utf-8")).body, "")
    return found


def _documented(body: list[ast.stmt]) -> dict[str, str]:
    return {
        statement.target.id: " ".join(following.value.value.split())
        for statement, following in itertools.pairwise(body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }


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


def exact_text(value: float) -> str:
    """Return a number in few characters, none of which is lost: 0.0001, 1e-05, 3, 0.1234567.

    Six digits are shown without trailing zeros; where they are not the number, as many as it takes.
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def type_words(annotation: Any) -> str:
    """Return a type in words, for help and for messages: ``a list (a whole number)``."""
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
    if annotation is Any:
        return True
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


def check_names(task_name: str, cls: type, given: Mapping[str, Any]) -> None:
    """Check the names of the options given for a task.

    Raises:
        OptionError: the task does not take one of them, or needs one that is left out.
    """
    options = describe(cls)
    for name, value in given.items():
        _check_name(task_name, name, value, options)
    for option in options.values():
        if option.is_required and option.name not in given:
            raise OptionError(
                f"task.{option.name}",
                dataclasses.MISSING,
                f"task {task_name!r} needs it ({type_words(option.type)})",
            )


def _check_name(task_name: str, name: str, value: Any, options: Mapping[str, Option]) -> None:
    if name not in options:
        raise OptionError(
            f"task.{name}",
            value,
            f"unknown option; task {task_name!r} takes {', '.join(options) or 'none'}"
            f"{nearest(name, options)}",
        )


def check_types(task: Any) -> None:
    """Check that every option of a task has its declared type.

    Raises:
        OptionError: one has another type.
    """
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
            raise OptionError(
                f"task.{option.name}",
                value,
                f"expected {type_words(option.type)}{nearest(value, choices)}",
            )


def require(task: Any, name: str, condition: bool, allowed: str) -> None:
    """Check an option of a task.

    Raises:
        OptionError: the condition does not hold; the message says that it must be ``allowed``.
    """
    if not condition:
        raise OptionError(f"task.{name}", getattr(task, name), f"must be {allowed}")


def parse_words(task_name: str, cls: type, words: Iterable[str]) -> dict[str, Any]:
    """Read ``option=value`` words from a command line into options of a task.

    The option's type decides how a value is read: text as it stands, everything else as JSON
    (``8``, ``0.5``, ``true``, ``null``, ``[1, 2]``). ``option.key=value`` fills a mapping.

    Raises:
        ValueError: a word without ``=``.
        OptionError: an unknown or a repeated option.
    """
    options = describe(cls)
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: expected option=value")
        name, _, key = name.removeprefix("task.").partition(".")
        _check_name(task_name, name, text, options)
        value = _parse_value(text, options[name].type if not key else str)
        if key:
            mapping = values.setdefault(name, {})
            if not isinstance(mapping, dict) or key in mapping:
                raise OptionError(f"task.{name}.{key}", text, "given twice")
            mapping[key] = value
        elif name in values:
            raise OptionError(f"task.{name}", text, "given twice")
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
    except (ValueError, RecursionError):  # no JSON, too many digits, nested too deeply
        return text  # check_types says what was expected
