"""From nodes to typed dataclasses: each field's type hint says what its value may be.

What is checked and the sentence that says so stand here. msgspec would convert as strictly, but it
tells what is wrong and where only in English, while the line of a value is found by its path.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Collection, Iterable
from typing import Any, Literal

from runners.config.yaml_nodes import ConfigError, Node, parse_scalar
from tasks.base.options import nearest, type_words

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
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f"; did you mean {f'{parent}.{close[0]}' if parent else close[0]!r}?" if close else ""
    names = ", ".join(allowed) if allowed else "no options"
    return ConfigError(
        f"unknown key; {what or 'expected one of'} {names}{hint}",
        path=path,
        value=node.plain(),
        place=node.place,
    )


def located(error: ValueError, node: Node, path: str) -> ConfigError:
    """Return what a class says of its options as the error of the node that it is about.

    Args:
        error: With the data ``option`` (dotted, from ``path`` or from the top), ``value`` and
            ``expected``; any other is about all of the mapping.
        node: The mapping that the class was built from.
        path: Dotted path of the mapping.
    """
    option = getattr(error, "option", None)
    if option is None:
        return ConfigError(str(error), path=path, place=node.place)
    option = option.removeprefix(f"{path}.")
    return ConfigError(
        error.expected,  # type: ignore[attr-defined]
        path=f"{path}.{option}" if path else option,
        value=error.value,  # type: ignore[attr-defined]
        place=node.find(option).place,
    )


# --- dataclasses ------------------------------------------------------------------------


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
    except ValueError as error:
        raise located(error, node, path) from error


def fields(
    cls: type, node: Node, path: str, *, owner: str = "", skip: Collection[str] = ()
) -> dict[str, Any]:
    """Return the converted values of the fields given in ``node``.

    Those named in ``skip`` must be there too, but are left out.

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
    for name in required(cls):
        if name not in node.value:
            where = f"; {owner} needs it" if owner else ""
            raise ConfigError(f"missing{where}", path=prefix + name, place=node.place)
    return {
        key: convert(child, known[key], prefix + key)
        for key, child in node.value.items()
        if key not in skip
    }


# --- values -----------------------------------------------------------------------------


def convert(node: Node, hint: Any, path: str) -> Any:
    """Return the node's value as the type ``hint``.

    An integer is accepted for a float and nothing else is turned into something else.

    Raises:
        ConfigError: a value of another type.
    """
    if hint is Any:
        return node.plain()
    options = _options(hint)
    if node.value is None and types.NoneType in options:
        return None
    kinds = [option for option in options if option is not types.NoneType]
    if len(kinds) == 1:
        return _convert_one(node, kinds[0], path, whole=hint)
    # int before float and str, whatever the order written, so that 3 stays 3.
    for kind in sorted(kinds, key=lambda kind: (kind is float, kind is str)):
        try:
            return _convert_one(node, kind, path, whole=hint)
        except ConfigError:
            continue
    raise wrong_value(node, path, type_words(hint))


def _options(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _convert_one(node: Node, kind: Any, path: str, *, whole: Any) -> Any:
    """Return the value as ``kind``; ``whole`` is the hint that the message describes."""
    value = node.value
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), node, path)
    if origin in (list, tuple) and isinstance(value, list):
        items = _item_hints(origin, arguments, len(value))
        if len(items) == len(value):
            pairs = enumerate(zip(value, items, strict=True))
            return origin(convert(child, item, f"{path}[{n}]") for n, (child, item) in pairs)
    if origin is dict and isinstance(value, dict):
        item = arguments[1] if arguments else Any
        return {key: convert(child, item, f"{path}.{key}") for key, child in value.items()}
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise wrong_value(node, path, type_words(whole), map(str, arguments))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind and kind not in (list, dict):
        return value
    error = wrong_value(node, path, type_words(whole))
    expected = error.expected + spelling(value, (kind,))
    raise ConfigError(expected, path=path, value=error.value, place=node.place)


def _item_hints(origin: Any, arguments: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    if origin is tuple and arguments and Ellipsis not in arguments:
        return arguments
    return (arguments[0] if arguments else Any,) * length


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
