"""Mappings of nodes put over each other: dotted keys, merging, overriding."""

from __future__ import annotations

from runners.config.yaml_nodes import ConfigError, Node, given_twice


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
