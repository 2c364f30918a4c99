"""A sweep's file: a base, variants of it, and a grid, read and checked key by key.

The grid has W&B's form: ``parameters: {model.depth.repeats: {values: [4, 8]}}``, names dotted or
nested (``model: {parameters: {depth.repeats: {values: [4, 8]}}}``). Files written for W&B may keep
``program``, ``command``, ``method: grid`` and ``metric``; a notice says that they have no effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runners.config import yaml_nodes
from runners.config.run_file import build, hints, include, unknown_key, wrong_value
from runners.config.schema import RunConfig, SweepConfig
from runners.config.shipped import find_config
from runners.config.yaml_nodes import (
    COMMAND_LINE,
    ConfigError,
    Node,
    given_twice,
    merge,
    nest,
    override,
)
from tasks.base.metrics import METRICS, metrics_of

WANDB_KEYS = ("program", "command", "method", "metric", "description", "project", "entity")
_WANDB_UNSUPPORTED = {
    "early_terminate": "every run trains to its end",
    "run_cap": "every run of the grid is made; exclude leaves some out",
}
"""Keys of W&B that would change which runs there are → what is done instead."""
_RUN_KEYS = tuple(hints(RunConfig))
_SWEEP_KEYS = tuple(hints(SweepConfig))
_GRID_WORDS = ("value", "values", "distribution", "min", "max", "mu", "sigma", "q")
"""Words of W&B that make a mapping a grid over one key; only the first two are taken."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep's file, read and checked, before its grid is multiplied out."""

    config: SweepConfig
    """The sweep as plain data."""
    path: Path
    """The file it was read from."""
    notices: tuple[str, ...]
    """Lines to print once: what the file says that has no effect."""
    base: Node = field(repr=False)
    variants: dict[str, Node] = field(repr=False)
    parameters: dict[str, list[Node]] = field(repr=False)
    """Grid: dotted path → the values it takes."""
    overrides: tuple[tuple[str, Node], ...] = field(repr=False)
    exclude: tuple[Node, ...] = field(repr=False)
    root: Node = field(repr=False)

    @property
    def baseline(self) -> str:
        """The variant that the others are tested against."""
        return self.config.baseline or next(iter(self.variants))

    def check_headline(
        self, splits: Sequence[str], kind: str, own_metrics: Sequence[str] = ()
    ) -> None:
        """Check that ``headline`` names a split and a metric of a task.

        Args:
            splits: Those of the task.
            kind: Kind of the task.
            own_metrics: Those that only this task has.

        Raises:
            ConfigError: it names another one.
        """
        for key, allowed in (("split", splits), ("metric", [*metrics_of(kind), *own_metrics])):
            value = self.config.headline.get(key)
            if value is not None and value not in allowed:
                node = self.root.value["headline"].value[key]
                raise wrong_value(node, f"headline.{key}", f"one of {', '.join(allowed)}", allowed)


# --- reading ----------------------------------------------------------------------------


def read_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep's file, then the overrides ``key=value`` over it.

    Args:
        path: YAML file with the fields of ``SweepConfig``, or the name of one that ships.
        overrides: ``train.steps=100`` changes every run, ``seeds=2`` the sweep itself.

    Raises:
        ConfigError: one line that says where, what, and what is allowed. What only a combination
            of values shows to be wrong is found by ``expand``.
    """
    path = find_config(path)
    root = yaml_nodes.read(path)
    root = _flatten_top(root)
    pairs = [yaml_nodes.parse_override(text) for text in overrides]
    run_overrides: list[tuple[str, Node]] = []
    for key, value in pairs:
        top, _, rest = key.partition(".")
        if top in _RUN_KEYS or (top == "base" and rest):
            run_overrides.append((key.removeprefix("base."), value))
        elif top in _SWEEP_KEYS:
            root = _override_top(root, key, value)
        else:
            raise unknown_key(value, key, [*_SWEEP_KEYS, *_RUN_KEYS], "expected one of")
    for key, child in root.value.items():
        if key in _WANDB_UNSUPPORTED:
            raise _refused(child, key, f"not supported: {_WANDB_UNSUPPORTED[key]}; remove the key")
        if key not in (*_SWEEP_KEYS, *WANDB_KEYS):
            hint = f" ({key} belongs under base)" if key in _RUN_KEYS else ""
            raise unknown_key(child, key, _SWEEP_KEYS, f"a sweep{hint} takes")
    notices = _wandb_notices(root)
    return _assemble(path, root, tuple(run_overrides), notices)


def _assemble(
    path: Path, root: Node, overrides: tuple[tuple[str, Node], ...], notices: list[str]
) -> Sweep:
    top = dict(root.value)
    for key in WANDB_KEYS:
        top.pop(key, None)
    top.setdefault("name", Node(path.stem, root.place))
    if "base" not in top:
        raise ConfigError(
            "missing; a sweep needs the run that it varies", path="base", place=root.place
        )
    base = include(top["base"], path, (path.resolve(),))
    variants = _read_variants(top.get("variants"), base)
    parameters = _read_parameters(top.get("parameters"))
    _check_run_paths(base, "base.")
    for name, change in variants.items():
        _check_run_paths(change, f"variants.{name}.")
    if "seed" in parameters:
        seeds = parameters.pop("seed")
        top.setdefault("seeds", Node(seeds, seeds[0].place))
    elif "seed" in base.value:
        top.setdefault("seeds", Node([base.value["seed"]], base.value["seed"].place))
    for key, value in overrides:
        if key == "seed" or key.startswith("seed."):
            raise _refused(value, key, "a sweep takes seeds=")
        if parameters.pop(key, None) is not None:
            notices.append(f"{COMMAND_LINE}: {key} is given, so the grid over it is left out")
    exclude = _read_exclude(top.get("exclude"), parameters)
    plain_top = dict(top)
    plain_top["base"] = base
    plain_top["variants"] = Node(variants, root.place)
    plain_top["parameters"] = Node(
        {
            key: Node({"values": Node(values, values[0].place)}, values[0].place)
            for key, values in parameters.items()
        },
        root.place,
    )
    plain_top["exclude"] = Node(list(exclude), root.place)
    config = build(SweepConfig, Node(plain_top, root.place), "", owner="a sweep")
    if not _NAME.fullmatch(config.name):
        raise wrong_value(top["name"], "name", "letters, digits and . _ - = + (a directory's name)")
    _check_choices(config, top, variants)
    return Sweep(
        config=config,
        path=path,
        notices=tuple(notices),
        base=base,
        variants=variants,
        parameters=parameters,
        overrides=overrides,
        exclude=exclude,
        root=Node(top, root.place),
    )


def _flatten_top(root: Node) -> Node:
    """Spell out dotted keys at the top (``headline.split``), but not in names of variants."""
    value: dict[str, Node] = {}
    for key, child in root.value.items():
        top, dot, rest = key.partition(".")
        if dot and top in _SWEEP_KEYS:
            child = Node({rest: child}, child.place)
            key = top
        value[key] = merge(value[key], child, f"{key}.", twice=True) if key in value else child
    return Node(value, root.place)


def _override_top(root: Node, key: str, value: Node) -> Node:
    """Return the sweep with one of its own keys replaced."""
    top, _, rest = key.partition(".")
    if not rest:
        return Node({**root.value, top: value}, root.place)
    old = root.value.get(top, Node({}, value.place))
    if top == "variants":
        new = _override_variant(old, rest, value)
    elif top == "parameters":
        new = _override_grid(old, rest, value)
    else:
        return override(root, key, value)
    return Node({**root.value, top: new}, root.place)


def _override_variant(variants: Node, path: str, value: Node) -> Node:
    """Return the variants with the value at ``<name>.<path in the run>`` replaced."""
    known = list(variants.value) if isinstance(variants.value, dict) else []
    # A name may hold a dot: the longest that fits is meant.
    for name in sorted(known, key=len, reverse=True):
        if path == name or path.startswith(f"{name}."):
            break
    else:
        raise unknown_key(value, f"variants.{path.partition('.')[0]}", known, "variants are")
    inner = path.removeprefix(name).removeprefix(".")
    change = nest(Node({inner: value}, value.place) if inner else value)
    old = nest(variants.value[name])
    new = merge(old, change) if isinstance(old.value, dict) else change
    return Node({**variants.value, name: new}, value.place)


def _override_grid(parameters: Node, path: str, value: Node) -> Node:
    """Return the grid with the values of one key replaced."""
    key, _, word = path.rpartition(".")
    if not key or word not in ("value", "values"):
        raise wrong_value(value, f"parameters.{path}", "parameters.<key>.values=[…]")
    flat = dict(_parameter_leaves(parameters))
    return Node({**flat, key: Node({word: value}, value.place)}, value.place)


def _wandb_notices(root: Node) -> list[str]:
    given = [key for key in WANDB_KEYS if key in root.value]
    if not given:
        return []
    method = root.value.get("method")
    if method is not None and method.value != "grid":
        raise wrong_value(method, "method", "grid (the only search there is)", ("grid",))
    return [f"{root.value[given[0]].place}: {', '.join(given)}: keys of W&B, without effect here"]


def _read_variants(node: Node | None, base: Node) -> dict[str, Node]:
    if node is None or node.value is None or node.value == {}:
        return {"base": Node({}, base.place)}
    if not isinstance(node.value, dict):
        raise wrong_value(node, "variants", "a mapping of names to changes")
    variants = {}
    for name, change in node.value.items():
        path = f"variants.{name}"
        if not _NAME.fullmatch(name):
            raise ConfigError(
                "expected a name of letters, digits and . _ - = +", path=path, place=change.place
            )
        if change.value is None:
            change = Node({}, change.place)
        if not isinstance(change.value, dict):
            raise wrong_value(change, path, "a mapping of changes to base")
        variants[name] = nest(change)
    return variants


def _check_run_paths(node: Node, prefix: str) -> None:
    """Raise if a change names a section or a fixed field that a run does not have."""
    if not isinstance(node.value, dict):
        raise wrong_value(node, prefix.rstrip("."), "a mapping")
    types = hints(RunConfig)
    for key, child in node.value.items():
        if key not in _RUN_KEYS:
            raise unknown_key(child, prefix + key, _RUN_KEYS, "a run takes")
        if key == "seed" and prefix.startswith("variants."):
            raise _refused(child, f"{prefix}seed", "a sweep takes seeds instead")
        if key in ("train", "evaluate") and isinstance(child.value, dict):
            known = hints(types[key])
            for inner, value in child.value.items():
                if inner not in known:
                    raise unknown_key(value, f"{prefix}{key}.{inner}", known, f"{key} takes")


def _read_parameters(node: Node | None) -> dict[str, list[Node]]:
    if node is None or node.value is None:
        return {}
    result: dict[str, list[Node]] = {}
    for path, leaf in _parameter_leaves(node):
        place = f"parameters.{path}"
        top = path.partition(".")[0]
        if top not in _RUN_KEYS:
            raise unknown_key(leaf, place, [f"{key}" for key in _RUN_KEYS], "a grid is over")
        if path in result:
            raise given_twice(place, leaf.place, first=result[path][0])
        for key, child in leaf.value.items():
            if key not in ("value", "values", "distribution"):
                raise unknown_key(child, f"{place}.{key}", ("value", "values"), "a grid takes")
        if ("value" in leaf.value) == ("values" in leaf.value):
            raise ConfigError("expected either value or values", path=place, place=leaf.place)
        if "value" in leaf.value:
            result[path] = [nest(leaf.value["value"])]
            continue
        values = leaf.value["values"]
        if not isinstance(values.value, list) or not values.value:
            raise wrong_value(values, f"{place}.values", "a list with at least one value")
        plain = [json.dumps(value.plain(), sort_keys=True) for value in values.value]
        if len(set(plain)) != len(plain):
            raise _refused(values, f"{place}.values", "one is given twice")
        result[path] = [nest(value) for value in values.value]
    return result


def _parameter_leaves(node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every grid entry: a mapping with ``value`` or ``values``, at whatever depth."""
    if not isinstance(node.value, dict):
        raise wrong_value(
            node, f"parameters.{prefix}".rstrip("."), "{value: x} or {values: [x, y]}"
        )
    for key, child in node.value.items():
        if not isinstance(child.value, dict) or not child.value:
            raise wrong_value(child, f"parameters.{prefix}{key}", "{value: x} or {values: [x, y]}")
        if any(word in child.value for word in _GRID_WORDS):
            yield prefix + key, child
        elif set(child.value) == {"parameters"}:
            yield from _parameter_leaves(child.value["parameters"], f"{prefix}{key}.")
        else:
            yield from _parameter_leaves(child, f"{prefix}{key}.")


def _read_exclude(node: Node | None, parameters: dict[str, list[Node]]) -> tuple[Node, ...]:
    if node is None or node.value is None:
        return ()
    if not isinstance(node.value, list):
        raise wrong_value(node, "exclude", "a list of mappings")
    points = []
    for index, item in enumerate(node.value):
        path = f"exclude[{index}]"
        if not isinstance(item.value, dict) or not item.value:
            raise wrong_value(item, path, "a mapping of grid keys to values")
        flat = dict(_flatten(item))
        for key, value in flat.items():
            if key.partition(".")[0] not in ("variant", "seed", *_RUN_KEYS):
                allowed = ["variant", "seed", *parameters]
                raise unknown_key(value, f"{path}.{key}", allowed, "keys are")
        points.append(Node(flat, item.place))
    return tuple(points)


def _flatten(node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    for key, child in node.value.items():
        if isinstance(child.value, dict) and child.value:
            yield from _flatten(child, f"{prefix}{key}.")
        else:
            yield prefix + key, child


def _check_choices(config: SweepConfig, top: dict[str, Node], variants: Mapping[str, Node]) -> None:
    if config.baseline is not None and config.baseline not in variants:
        names = ", ".join(variants)
        raise wrong_value(top["baseline"], "baseline", f"one of the variants {names}", variants)
    for name in config.ours:
        if name not in variants:
            raise wrong_value(top["ours"], "ours", f"among the variants {', '.join(variants)}")
    for key, child in (top["headline"].value if "headline" in top else {}).items():
        if key not in ("split", "metric"):
            raise unknown_key(child, f"headline.{key}", ("split", "metric"), "headline takes")
        if not isinstance(child.value, str):
            raise wrong_value(child, f"headline.{key}", "a word")
        if key == "metric" and child.value not in METRICS:
            raise wrong_value(child, "headline.metric", f"one of {', '.join(METRICS)}", METRICS)


def _refused(node: Node, path: str, expected: str) -> ConfigError:
    return ConfigError(expected, path=path, value=node.plain(), place=node.place)
