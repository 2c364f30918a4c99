"""YAML read strictly: every value keeps its place, and nothing is guessed.

PyYAML follows YAML 1.1, where ``3e-4`` is a string, ``on`` is true, ``012`` is ten and the last of
two equal keys wins without a word. Here plain scalars follow YAML 1.2 (a number with a leading zero
stays a string, so that a field that wants a number refuses it), and equal keys are an error.

The result is a tree of ``Node``s: a value and the ``file:line`` it was written at. Command-line
overrides are nodes too, whose place is ``command line``; files and overrides are merged as nodes.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.base.options import nearest

COMMAND_LINE = "command line"
MAX_NODES = 200_000
"""Bound on the size of a document after its aliases are expanded."""


class ConfigError(ValueError):
    """Bad input by the user; its text is one line: place, path, value, what is expected.

    Attributes:
        expected: What is wrong and what is allowed, the nearest match included.
        path: Dotted path of the value, such as ``train.steps``; empty where it is about none.
        value: The value itself; ``dataclasses.MISSING`` for a missing or misplaced key.
        place: Where it was written, ``file:line``; empty where that is not known.
    """

    def __init__(
        self, expected: str, *, path: str = "", value: Any = MISSING, place: str = ""
    ) -> None:
        self.expected, self.path, self.value, self.place = expected, path, value, place
        shown = path if value is MISSING else f"{path}={show(value)}"
        line = ": ".join(part for part in (place, shown, expected) if part)
        super().__init__(" ".join(line.split()))


@dataclass(frozen=True, slots=True)
class Node:
    """A value with the place it was written at.

    ``value`` is a scalar, a list of nodes, or a dict from string to node.
    """

    value: Any
    place: str

    def plain(self) -> Any:
        """Return the value without places, as plain data."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def find(self, path: str) -> Node:
        """Return the node at a dotted path, or the nearest above it that is there."""
        node = self
        for key in path.split("."):
            if not isinstance(node.value, dict) or key not in node.value:
                break
            node = node.value[key]
        return node


def given_twice(path: str, place: str, *, first: Node) -> ConfigError:
    """Return the error for a key that stands twice in one mapping."""
    return ConfigError(f"key given twice; first at {first.place}", path=path, place=place)


def show(value: Any) -> str:
    """Return ``value`` as one writes it in YAML, cut at 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- scalars ----------------------------------------------------------------------------

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
MAX_DIGITS = 308
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
    ".inf": float("inf"),
    "+.inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


def parse_scalar(text: str) -> Any:
    """Return the value of a plain (unquoted) scalar.

    ``3e-4`` is a float and ``-7`` an integer; ``yes``, ``on``, ``012``, ``1_000``, dates and
    integers that no float can hold are strings, which whatever wants a number refuses.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= MAX_DIGITS else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


# --- documents --------------------------------------------------------------------------

_PLAIN = "!plain"
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012


_Loader.add_implicit_resolver(_PLAIN, re.compile(r".*", re.DOTALL), None)


def read(path: str | Path) -> Node:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing, empty, binary, not UTF-8, or not strict YAML.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except IsADirectoryError as error:
        raise ConfigError("is a directory; expected a YAML file", place=str(path)) from error
    except FileNotFoundError as error:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings)
        raise ConfigError(f"no such file{hint}", place=str(path)) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=_short(path)) from error
    except ValueError as error:  # a zero byte or half a character in the name
        raise ConfigError(f"cannot be read: {error}", place=repr(_short(path))) from error
    line = 1 + raw.count(b"\n", 0, max(raw.find(b"\0"), 0))
    if b"\0" in raw:
        raise ConfigError(
            "zero byte: a binary file; expected YAML in UTF-8", place=f"{path}:{line}"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        byte = raw[error.start]
        raise ConfigError(
            f"byte 0x{byte:02x} is not UTF-8; expected YAML in UTF-8", place=f"{path}:{line}"
        ) from error
    root = parse(text, str(path))
    if root is None:
        raise ConfigError("empty file; expected a mapping of keys to values", place=f"{path}:1")
    if not isinstance(root.value, dict):
        raise ConfigError(
            f"{show(root.plain())}: expected a mapping of keys to values", place=root.place
        )
    return root


def _short(path: Path) -> str:
    name = str(path)
    return name if len(name) <= 200 else name[:200] + "…"


def parse(text: str, name: str) -> Node | None:
    """Parse one YAML document; ``name`` is the file's name in places. None: it holds nothing.

    Raises:
        ConfigError: a syntax error, a key given twice, a tag that is not plain data.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "syntax error"
        if "'\\t'" in problem:
            problem = "a tab; YAML is indented with spaces"
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"not YAML: {problem}", place=f"{name}:{line}") from error
    except yaml.reader.ReaderError as error:
        line = 1 + text.count("\n", 0, error.position)
        raise ConfigError(
            f"control character {error.character!r}: expected YAML text", place=f"{name}:{line}"
        ) from error
    except RecursionError as error:
        raise ConfigError("nested too deeply", place=f"{name}:1") from error
    if root is None:
        return None
    return _Builder(name).build(root, "")


class _Builder:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.open: set[int] = set()

    def place(self, node: yaml.Node) -> str:
        return self.name if self.name == COMMAND_LINE else f"{self.name}:{node.start_mark.line + 1}"

    def build(self, node: yaml.Node, path: str) -> Node:
        place = self.place(node)
        self.count += 1
        if self.count > MAX_NODES:
            raise ConfigError(f"more than {MAX_NODES} values", path=path, place=place)
        if id(node) in self.open:
            raise ConfigError("an alias to a value that contains it", path=path, place=place)
        if isinstance(node, yaml.ScalarNode):
            return Node(self.scalar(node, path), place)
        self.open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            value: Any = [
                self.build(child, f"{path}[{index}]") for index, child in enumerate(node.value)
            ]
        else:
            assert isinstance(node, yaml.MappingNode)
            value = self.mapping(node, path)
        self.open.remove(id(node))
        if node.tag not in (f"{_TAG}seq", f"{_TAG}map"):
            raise ConfigError(f"tag {node.tag!r} is not plain data", path=path, place=place)
        return Node(value, place)

    def mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key, child in node.value:
            place = self.place(key)
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError("a key must be a word", place=place)
            full = f"{path}.{key.value}" if path else key.value
            if key.value == "<<" and key.tag == _PLAIN:
                raise ConfigError(
                    "merge keys are not supported; write the keys out, or put what several files "
                    "share into one of them and name it under base",
                    path=full,
                    place=place,
                )
            if key.value in result:
                raise given_twice(full, place, first=result[key.value])
            built = self.build(child, full)
            # The key's line is what a reader looks for, also when its value starts further down.
            result[key.value] = Node(built.value, place)
        return result

    def scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        if node.tag == _PLAIN:
            return parse_scalar(node.value)
        if node.tag in (f"{_TAG}str", "!"):
            return node.value
        raise ConfigError(f"tag {node.tag!r} is not plain data", path=path, place=self.place(node))


# --- overrides --------------------------------------------------------------------------


def parse_override(text: str) -> tuple[str, Node]:
    """Split ``key.path=value``; the value follows the rules of a file (``[1, 2]`` is a list).

    Raises:
        ConfigError: there is no ``=``, no key, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(
            f"{show(text)}: expected key=value, for example train.steps=100", place=COMMAND_LINE
        )
    try:
        node = parse(value, COMMAND_LINE)
    except ConfigError as error:
        raise ConfigError(error.expected, path=key, value=value, place=COMMAND_LINE) from error
    return key, node if node is not None else Node(None, COMMAND_LINE)


# --- dotted keys, merging ---------------------------------------------------------------


def nest(node: Node, path: str = "") -> Node:
    """Return a mapping with dotted keys spelled out: ``{a.b: 1}`` becomes ``{a: {b: 1}}``.

    Raises:
        ConfigError: one value is given both ways.
    """
    if not isinstance(node.value, dict):
        return node
    result = Node({}, node.place)
    for key, child in node.value.items():
        parts = key.split(".")
        if not all(parts):
            raise ConfigError(
                "expected words with dots between them", path=path + key, place=child.place
            )
        inner = nest(child, f"{path}{key}.")
        for part in reversed(parts):
            inner = Node({part: inner}, child.place)
        result = merge(result, inner, path, twice=True)
    return result


def merge(base: Node, change: Node, path: str = "", *, twice: bool = False) -> Node:
    """Return ``base`` with ``change`` over it, mappings merged key by key.

    A block of a model that changes its kind loses the keys of the old one, and a bare word under
    ``model`` is short for its kind.

    Args:
        path: Dotted path of both, with a dot at its end, for messages.
        twice: Both are from one mapping, so a value in both is an error.

    Raises:
        ConfigError: a value in both, under ``twice``.
    """
    if path.startswith("model.") and isinstance(change.value, dict) and not twice:
        base = _of_one_kind(base, change)
    if not (isinstance(base.value, dict) and isinstance(change.value, dict)):
        if twice:
            raise given_twice(path.rstrip("."), change.place, first=base)
        return change
    value = dict(base.value)
    for key, child in change.value.items():
        old = value.get(key)
        value[key] = child if old is None else merge(old, child, f"{path}{key}.", twice=twice)
    return Node(value, base.place)


def _of_one_kind(base: Node, change: Node) -> Node:
    """Return the mapping that ``change`` goes over: nothing, where it is of another kind."""
    if isinstance(base.value, str):
        base = Node({"kind": base}, base.place)
    old, new = base.find("kind"), change.find("kind")
    changes = old is not base and new is not change and old.value != new.value
    return Node({}, base.place) if changes else base


def override(node: Node, path: str, value: Node) -> Node:
    """Return ``node`` with the value at a dotted path replaced; building checks it."""
    value = nest(value)
    for part in reversed(path.split(".")):
        value = Node({part: value}, value.place)
    return merge(node, value)


# --- writing ----------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class _FastDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Emits by libyaml, where PyYAML was built with it: six times faster."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML quotes what YAML 1.1 would misread; '3e-4' is not among that, but is a number here.
    style = None if isinstance(parse_scalar(value), str) else "'"
    return dumper.represent_scalar(f"{_TAG}str", value, style=style)


for _kind in (_Dumper, _FastDumper):
    _kind.add_representer(str, _represent_string)
    _kind.add_representer(tuple, lambda dumper, value: dumper.represent_list(list(value)))


def dump(data: Any) -> str:
    """Return YAML text that ``parse`` reads back to equal data (tuples as lists).

    The bytes are the same whether libyaml is there or not.
    """
    text = _dump(data, _FastDumper)
    # libyaml escapes other characters, breaks the lines of escaped strings elsewhere, and writes an
    # empty key without a question mark.
    return _dump(data, _Dumper) if "\\" in text or "'':" in text else text


def _dump(data: Any, dumper: type[yaml.SafeDumper]) -> str:
    return yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)


def dump_inline(data: Any) -> str:
    """Return the same on one line, as one writes it behind a key: ``[0.9, 0.999]``, ``null``."""
    text = yaml.dump([data], Dumper=_Dumper, default_flow_style=True, width=10**6)
    return text.strip()[1:-1]
