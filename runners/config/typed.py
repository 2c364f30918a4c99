"""From nodes to typed dataclasses: each field's type hint says what its value may be."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from runners.config.yaml_nodes import ConfigError, Node, parse_scalar, unknown_key, wrong_value
from tasks.base.options import nearest


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Return the type hints of a dataclass's init fields, by name, in order."""
    resolved = typing.get_type_hints(cls)
    return {field.name: resolved[field.name] for field in dataclasses.fields(cls) if field.init}


@functools.cache
def required(cls: type) -> tuple[str, ...]:
    """Return the names of the fields that have no default."""
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
    values = fields(cls, node, path, owner=owner)
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise relocate(error, node, path) from error


def fields(cls: type, node: Node, path: str, *, owner: str = "") -> dict[str, Any]:
    """Return the converted values of the fields given in ``node``, checked one by one."""
    if not isinstance(node.value, dict):
        raise wrong_value(node, path, "a mapping")
    known = hints(cls)
    prefix = f"{path}." if path else ""
    for key, child in node.value.items():
        if key not in known:
            raise unknown_key(child, prefix + key, known, f"{owner} takes" if owner else "")
    for name in required(cls):
        if name not in node.value:
            where = f"; {owner} needs it" if owner else ""
            raise ConfigError(f"{node.place}: {prefix}{name}: missing{where}")
    return {key: convert(child, known[key], prefix + key) for key, child in node.value.items()}


def relocate(error: ValueError, node: Node, path: str) -> ConfigError:
    """Return a class's own complaint with the place of the option that it names first.

    The checks of models and tasks say ``option=value: must be …``; an option reached through
    another name (``decoder.group_size``) is found by its last part.
    """
    message = str(error)
    match = re.match(r"(?:[A-Za-z_]+: )?([A-Za-z_][\w.]*)\s*=", message)
    name = match[1].rpartition(".")[2] if match else ""
    if match and isinstance(node.value, dict) and name in node.value:
        message = f"{path}.{name}{message[match.end(1) :]}" if path else message[match.start(1) :]
        return ConfigError(f"{node.value[name].place}: {message}")
    return ConfigError(f"{node.place}: {path}: {message}" if path else f"{node.place}: {message}")


def convert(node: Node, hint: Any, path: str) -> Any:
    """Return the node's value as the type ``hint``, or raise the one-line error.

    An integer is accepted for a float and nothing else is turned into something else.
    """
    value = node.value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return node.plain()
    if origin in (typing.Union, types.UnionType):
        return _convert_union(node, arguments, path)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            options = ", ".join(map(str, arguments))
            raise wrong_value(node, path, f"one of {options}", map(str, arguments))
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), node, path)
    if origin in (list, tuple) or hint in (list, tuple):
        return _convert_sequence(node, origin or hint, arguments, path)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, dict):
            raise wrong_value(node, path, "a mapping")
        item = arguments[1] if len(arguments) == 2 else Any
        return {key: convert(child, item, f"{path}.{key}") for key, child in value.items()}
    return _convert_scalar(node, hint, path)


def _convert_scalar(node: Node, hint: Any, path: str) -> Any:
    value = node.value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is hint or (hint in (None, types.NoneType) and value is None):
        return value
    raise ConfigError(str(wrong_value(node, path, describe(hint))) + _spelling(value, hint))


def _spelling(value: Any, hint: Any) -> str:
    """Return what somebody meant who wrote ``yes``, ``012`` or ``1_000``."""
    if hint is bool and isinstance(value, str):
        words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        meant = words.get(value.lower())
        return f"; did you mean {meant}?" if meant else nearest(value, ("true", "false"))
    if hint in (int, float) and isinstance(value, str):
        meant = parse_scalar(value.replace("_", "").lstrip("0"))
        return f"; did you mean {meant}?" if type(meant) is hint else ""
    return ""


def _convert_union(node: Node, options: tuple[Any, ...], path: str) -> Any:
    if node.value is None and types.NoneType in options:
        return None
    kinds = [option for option in options if option is not types.NoneType]
    if len(kinds) == 1:
        try:
            return convert(node, kinds[0], path)
        except ConfigError as error:
            if types.NoneType in options and not isinstance(node.value, (dict, list)):
                text = str(error)
                head, marker, hint = text.partition("; did you mean")
                raise ConfigError(f"{head} or null{marker}{hint}") from error
            raise
    # int before float and str, whatever the order written, so that 3 stays 3.
    for kind in sorted(kinds, key=lambda kind: (kind is float, kind is str)):
        try:
            return convert(node, kind, path)
        except ConfigError:
            continue
    raise wrong_value(node, path, describe(typing.Union[options]))  # noqa: UP007


def _convert_sequence(node: Node, kind: Any, arguments: tuple[Any, ...], path: str) -> Any:
    if not isinstance(node.value, list):
        raise wrong_value(node, path, "a list, for example [1, 2]")
    if kind is tuple and arguments and Ellipsis not in arguments:
        if len(node.value) != len(arguments):
            raise wrong_value(node, path, f"a list of {len(arguments)}")
        items = arguments
    else:
        items = (arguments[0] if arguments else Any,) * len(node.value)
    pairs = zip(node.value, items, strict=True)
    return kind(convert(child, item, f"{path}[{i}]") for i, (child, item) in enumerate(pairs))


def describe(hint: Any) -> str:
    """Return a type hint in words: ``a whole number``, ``one of adam, adamw``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a word",
        Path: "a path",
        types.NoneType: "null",
        None: "null",
        Any: "any value",
        dict: "a mapping",
        list: "a list",
        tuple: "a list",
    }
    if hint in words:
        return words[hint]
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin in (list, tuple):
        kinds = dict.fromkeys(describe(item) for item in arguments if item is not Ellipsis)
        return "a list" + (f" of {' and '.join(kinds)}" if kinds else "")
    return "a mapping"
