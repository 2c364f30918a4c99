"""Checked options: frozen dataclasses that are read from, and written to, plain data.

A model is described by a tree of them. Where a block comes in several kinds (dense or expert
attention), each kind is a class of its own with its name in ``kind``, and the field that holds the
block names the kinds, which are imported when they are taken, with ``one_of``::

    ATTENTION = Kinds({"dense": "dense:DenseAttention", "switch_head": "switch_head:SwitchHead"})

    @dataclass(frozen=True, kw_only=True)
    class Blueprint(Options):
        attention: AttentionOptions = one_of(ATTENTION)

So an option of another kind is refused by construction. Every refusal is an ``OptionError``, which
carries the option's path, its value and what is allowed as data.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

CLOSE = 0.62
"""Likeness from which on a word may have been meant: that of ``cosine`` and ``none`` is 0.6."""


class OptionError(ValueError):
    """An option has a value that is not allowed."""

    def __init__(self, option: str, value: Any, expected: str) -> None:
        super().__init__(option, value, expected)
        self.option = option
        """Dotted path of the option from the root of the tree: ``feed_forward.top_k``."""
        self.value = value
        self.expected = expected
        """What is allowed instead, with the nearest match where there is one."""

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.expected}"

    def under(self, prefix: str) -> Self:
        """Return the same error one level deeper, its option below ``prefix``."""
        return type(self)(f"{prefix}.{self.option}", self.value, self.expected)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options; construction raises ``OptionError`` for a value of a wrong type."""

    kind: ClassVar[str | None] = None
    """Name of the kind, where a block comes in several."""

    def __post_init__(self) -> None:
        for name, annotation in type_hints(type(self)).items():
            value = getattr(self, name)
            kinds = kinds_of(type(self), name)
            if value is None and is_derived(type(self), name):
                continue
            if kinds is None:
                if _is_list(annotation) and isinstance(value, list):
                    value = tuple(value)
                    object.__setattr__(self, name, value)
                check_type(name, value, annotation)
                if type(value) is int and abs(value) > sys.maxsize:  # PyTorch takes no larger size
                    raise OptionError(name, value, f"expected at most {sys.maxsize}")
                if isinstance(value, int) and annotation is float:  # 0 and 0.0 are one identity
                    object.__setattr__(self, name, float(value))
            elif not (isinstance(value, Options) and _is_one_of(kinds, value)):
                raise OptionError(name, value, f"expected options of kind {' or '.join(kinds)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that ``from_dict`` reads back to equal options."""
        data: dict[str, Any] = {} if self.kind is None else {"kind": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            data[field.name] = _plain(value)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, path: str = "model") -> Self:
        """Read options from plain data, ``kind`` left out.

        Args:
            data: Names and values.
            path: Dotted path that a message calls these options by.

        Raises:
            OptionError: an unknown or missing key, a value of a wrong type, or sizes that do not
                fit together; its path starts at ``cls``.
        """
        hints = type_hints(cls)
        values = {name: _read_field(cls, name, value, path) for name, value in data.items()}
        for field in dataclasses.fields(cls):
            if field.name not in values and not _has_default(field):
                what = words_of(hints[field.name])
                raise OptionError(field.name, None, f"missing; expected {what}")
        return cls(**values)


OptionsT = TypeVar("OptionsT", bound=Options)


class Kinds(MutableMapping[str, type[OptionsT]]):
    """The kinds of a block by name: classes, or places ``module:Class`` imported when first taken.

    So a model loads the kinds that it is made of alone, however many there are. Names, their order
    and their number are known without an import; ``values`` and ``items`` import every kind.
    """

    def __init__(self, entries: Mapping[str, type[OptionsT] | str]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> type[OptionsT]:
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, class_name = entry.partition(":")
            found = getattr(importlib.import_module(module), class_name)
            entry = self._entries[name] = cast("type[OptionsT]", found)
        return entry

    def __setitem__(self, name: str, entry: type[OptionsT] | str) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def export(self, class_name: str) -> type[OptionsT]:
        """Return the kind whose class has a name, for ``__getattr__`` of the kinds' package.

        Raises:
            AttributeError: no kind has such a class.
        """
        for name, entry in self._entries.items():
            place = entry if isinstance(entry, str) else f":{entry.__name__}"
            if place.endswith(f":{class_name}"):
                return self[name]
        raise AttributeError(f"no kind has a class {class_name!r}; there are {', '.join(self)}")


def _is_one_of(kinds: Mapping[str, type[Options]], value: Options) -> bool:
    kind = value.kind
    return kind is not None and kind in kinds and isinstance(value, kinds[kind])


def one_of(kinds: Mapping[str, type[Options]], default: Callable[[], Options] | None = None) -> Any:
    """Return the dataclass field of a block that is one of ``kinds``; required without default."""
    metadata = {"kinds": kinds}
    if default is None:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default_factory=default, metadata=metadata)


def derived() -> Any:
    """Return the dataclass field of an option that follows from others where it is left out.

    None is what left out is called. Whoever holds the options fills in the value, so the annotation
    says the type of the value alone.
    """
    return dataclasses.field(default=None, metadata={"derived": True})


def kinds_of(cls: type[Options], name: str) -> Mapping[str, type[Options]] | None:
    """Return the kinds that the field ``name`` may have, by name; None if it is no such block."""
    return _fields(cls)[name].metadata.get("kinds")


def nested_of(cls: type[Options], name: str) -> type[Options] | None:
    """Return the class of the options below the field ``name``; None if it has none, or kinds."""
    for nested in _alternatives(type_hints(cls)[name]):
        if isinstance(nested, type) and issubclass(nested, Options):
            return nested
    return None


def is_derived(cls: type[Options], name: str) -> bool:
    """Return whether the option ``name`` may be left out because it follows from others."""
    return _fields(cls)[name].metadata.get("derived", False)


# --- reading plain data -----------------------------------------------------------------


def _read_field(cls: type[Options], name: str, data: Any, path: str) -> Any:
    """Return the value of one field from plain data, its errors below the field's name."""
    hints = type_hints(cls)
    if name not in hints:
        raise OptionError(name, data, _unknown(name, f"{path} takes", hints))
    kinds = kinds_of(cls, name)
    below = f"{path}.{name}"
    try:
        if kinds is not None:
            return _read_kind(kinds, data, _default_kind(cls, name), below)
        nested = nested_of(cls, name)
        if nested is not None and data is not None:
            mapping = _mapping(data, f"a mapping of {_listed(nested)}")
            return nested.from_dict(mapping, path=below)
    except _OfTheBlock as error:
        raise OptionError(name, data, error.expected) from None
    except OptionError as error:
        raise error.under(name) from None
    return data


def _read_kind(
    kinds: Mapping[str, type[Options]], data: Any, default: str | None, path: str
) -> Options:
    """Return the options of one of ``kinds``; a bare word is short for its kind alone."""
    if isinstance(data, str):
        data = {"kind": data}
    data = dict(_mapping(data, f"a mapping with a kind, or one of {', '.join(kinds)}"))
    kind = data.pop("kind", default)
    if not isinstance(kind, str) or kind not in kinds:
        raise OptionError("kind", kind, f"expected one of {', '.join(kinds)}{nearest(kind, kinds)}")
    chosen = kinds[kind]
    known = type_hints(chosen)
    for name, value in data.items():
        if name not in known:
            message = _unknown(name, f"kind {kind!r} takes", known)
            owners = [repr(other) for other, cls in kinds.items() if name in type_hints(cls)]
            owned = f" (it is an option of kind {' and '.join(owners)})" if owners else ""
            raise OptionError(name, value, message + owned)
    return chosen.from_dict(data, path=path)


class _OfTheBlock(Exception):
    """The value of a whole block is of a wrong type, so the error's path is the block's own."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


def _mapping(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise _OfTheBlock(f"expected {what}")
    return data


def _unknown(name: str, takes: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"unknown; {takes} {', '.join(known) or 'no options'}{nearest(name, known)}"


def _listed(cls: type[Options]) -> str:
    return ", ".join(type_hints(cls))


def _default_kind(cls: type[Options], name: str) -> str | None:
    factory = _fields(cls)[name].default_factory
    return None if factory is dataclasses.MISSING else factory().kind


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _fields(cls: type[Options]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


# --- checks -----------------------------------------------------------------------------


def type_hints(cls: type[Options]) -> dict[str, Any]:
    """Return the type of each option of ``cls`` by name, in their order."""
    key: Any = cls
    return _type_hints(key)


@functools.cache
def _type_hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def check_type(option: str, value: Any, annotation: Any) -> None:
    """Raise ``OptionError`` unless ``value`` is of the annotated type; a float may be an int."""
    for kind in _alternatives(annotation):
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return
            continue
        if _is_list(kind):
            is_element = typing.get_args(kind)[0]
            if isinstance(value, tuple) and all(type(one) is is_element for one in value):
                return
            continue
        accepted = (int, float) if kind is float else kind
        if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
            return
    literals = [word for kind in _alternatives(annotation) for word in typing.get_args(kind)]
    raise OptionError(option, value, f"expected {words_of(annotation)}{nearest(value, literals)}")


def words_of(annotation: Any) -> str:
    """Return what an annotation allows, in words."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    said = []
    for kind in _alternatives(annotation):
        if typing.get_origin(kind) is Literal:
            said.append(f"one of {', '.join(map(str, typing.get_args(kind)))}")
        elif _is_list(kind):
            said.append(f"a list, each {words_of(typing.get_args(kind)[0])}")
        elif kind is not types.NoneType:
            said.append(words.get(kind, kind.__name__))
    return " or ".join(said)


def _is_list(annotation: Any) -> bool:
    """Return whether an option is a tuple of any length, which plain data calls a list."""
    return typing.get_origin(annotation) is tuple


def _plain(value: Any) -> Any:
    """Return the plain data of an option's value."""
    if isinstance(value, Options):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def nearest(value: object, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for an allowed word that is close, or an empty string."""
    words = [str(word) for word in allowed]
    match = difflib.get_close_matches(str(value), words, n=1, cutoff=CLOSE)
    return f"; did you mean {match[0]!r}?" if match else ""


def require(condition: bool, option: str, value: Any, expected: str) -> None:
    """Raise ``OptionError`` unless ``condition`` holds."""
    if not condition:
        raise OptionError(option, value, expected)


def require_positive(options: Options, *names: str) -> None:
    """Raise ``OptionError`` unless the named options are at least 1, or left out."""
    for name in names:
        value = getattr(options, name)
        ok = value is None or value >= 1
        require(ok, name, value, "must be a whole number of at least 1")


def require_probability(options: Options, *names: str) -> None:
    """Raise ``OptionError`` unless the named options are at least 0 and below 1, or left out."""
    for name in names:
        value = getattr(options, name)
        ok = value is None or 0.0 <= value < 1.0
        require(ok, name, value, "must be at least 0 and below 1")


def require_finite(options: Options, *names: str) -> None:
    """Raise ``OptionError`` unless the named options are finite and at least 0."""
    for name in names:
        value = getattr(options, name)
        require(0.0 <= value < math.inf, name, value, "must be a finite number of at least 0")
