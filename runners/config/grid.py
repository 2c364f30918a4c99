"""From a sweep to its list of runs: variants × parameters × seeds.

Precedence: a field's default, ``base``, the variant, the grid point, the command line. What is
given on the command line holds for every run, and a grid over that very key shrinks to it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.config.commands import Command, with_earlier
from runners.config.run_file import SectionChecker, build_run
from runners.config.schema import RunConfig
from runners.config.sweep_file import Sweep, read_sweep
from runners.config.yaml_nodes import COMMAND_LINE, ConfigError, Node, merge, override, show
from tasks.base.storage import write_json

__all__ = ["PlannedRun", "Sweep", "expand", "plan_record", "read_sweep", "write_plan"]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep."""

    variant: str
    parameters: dict[str, Any]
    """The grid point: dotted path → value."""
    seed: int
    config: RunConfig
    hash: str
    directory: Path
    """``runs/<sweep>/<variant>-<hash8>/seed<k>``."""


# --- expansion --------------------------------------------------------------------------


def expand(
    sweep: Sweep,
    *,
    root: str | Path = "runs",
    data_hash: Callable[[dict[str, Any]], str] | None = None,
) -> list[PlannedRun]:
    """Return every run of a sweep: by grid point, then variant, then seed.

    Args:
        sweep: What ``read_sweep`` returned.
        root: Directory in which sweeps lie.
        data_hash: Hash of the data of a task section; by default the task is built and asked.

    Raises:
        ConfigError: a combination that no model or task takes, two variants that are the same run,
            or nothing left after ``exclude``.
        tasks.DataMissing: a data file is not there.
    """
    checker = SectionChecker()
    hashes = _DataHashes(data_hash or task_data_hash)
    planned: list[PlannedRun] = []
    owners: dict[str, _Setting] = {}
    matched: set[int] = set()
    directory = Path(root) / sweep.config.name
    for setting in _settings(sweep):
        excluded_by = {
            seed: _matching(sweep.exclude, setting, seed) for seed in sweep.config.seed_list
        }
        matched.update(*excluded_by.values())
        seeds = [seed for seed, points in excluded_by.items() if not points]
        if not seeds:
            continue
        config = build_run(setting.with_seed(seeds[0]), checker)
        digest = config.hash(hashes.of(config))
        owner = owners.setdefault(digest, setting)
        if owner is not setting:
            raise _same_run(sweep, setting, owner)
        planned += (
            PlannedRun(
                variant=setting.variant,
                parameters=setting.parameters,
                seed=seed,
                config=dataclasses.replace(config, seed=seed),
                hash=digest,
                directory=directory / f"{setting.variant}-{digest}" / f"seed{seed}",
            )
            for seed in seeds
        )
    unmatched = [point for index, point in enumerate(sweep.exclude) if index not in matched]
    if unmatched and not _is_narrowed(sweep):
        point = unmatched[0]
        raise ConfigError(
            f"{show(point.plain())} matches no run", path="exclude", place=point.place
        )
    if not planned:
        raise ConfigError("exclude leaves no run", place=sweep.root.place)
    return planned


def _is_narrowed(sweep: Sweep) -> bool:
    """Return whether the command line may have taken away what ``exclude`` names."""
    seeds = sweep.root.value.get("seeds")
    return bool(sweep.overrides) or (seeds is not None and seeds.place == COMMAND_LINE)


@dataclass(frozen=True)
class _Setting:
    """A variant at a grid point."""

    variant: str
    parameters: dict[str, Any]
    node: Node
    """The run, merged."""

    def with_seed(self, seed: int) -> Node:
        return Node({**self.node.value, "seed": Node(seed, self.node.place)}, self.node.place)

    def value(self, path: str) -> Any:
        """Return what an ``exclude`` compares with: a value as given, or None."""
        if path == "variant":
            return self.variant
        if path in self.parameters:
            return self.parameters[path]
        node = self.node
        for key in path.split("."):
            if not isinstance(node.value, dict) or key not in node.value:
                return None
            node = node.value[key]
        return node.plain()

    def __str__(self) -> str:
        values = ", ".join(f"{key}={show(value)}" for key, value in self.parameters.items())
        return f"{self.variant} ({values})" if values else self.variant


def _settings(sweep: Sweep) -> Iterator[_Setting]:
    for point in itertools.product(*sweep.parameters.values()):
        grid = dict(zip(sweep.parameters, point, strict=True))
        parameters = {path: node.plain() for path, node in grid.items()}
        for variant, change in sweep.variants.items():
            node = merge(sweep.base, change)
            for path, value in (*grid.items(), *sweep.overrides):
                node = override(node, path, value)
            yield _Setting(variant, parameters, node)


def _matching(exclude: Sequence[Node], setting: _Setting, seed: int) -> list[int]:
    """Return the numbers of the excluded points that a run is one of."""
    return [
        index
        for index, point in enumerate(exclude)
        if all(
            wanted.plain() == (seed if key == "seed" else setting.value(key))
            for key, wanted in point.value.items()
        )
    ]


def _same_run(sweep: Sweep, one: _Setting, other: _Setting) -> ConfigError:
    change = sweep.variants[one.variant]
    return ConfigError(
        f"{one} and {other} are the same run; a variant or grid value must change "
        "something, and where the same data lies is nothing",
        path=f"variants.{one.variant}",
        place=change.place if one.variant != other.variant else sweep.root.place,
    )


class _DataHashes:
    """Hashes the data of each task once."""

    def __init__(self, data_hash: Callable[[dict[str, Any]], str]) -> None:
        self._data_hash = data_hash
        self._known: dict[str, str] = {}

    def of(self, config: RunConfig) -> str:
        """Return the hash of a run's data.

        Raises:
            ConfigError: a user's own file is not what the config says.
            tasks.DataMissing, tasks.DataDamaged: a data file is missing, or not the published one.
        """
        key = json.dumps(config.task, sort_keys=True)
        if key not in self._known:
            with config.locating("task"):
                self._known[key] = self._data_hash(config.task)
        return self._known[key]


def task_data_hash(task: dict[str, Any]) -> str:
    """Build the task of a section and return the hash of its data."""
    import tasks

    options = {key: value for key, value in task.items() if key != "name"}
    return tasks.create(task["name"], **options).data_hash()


# --- the plan on disk -------------------------------------------------------------------


def plan_record(sweep: Sweep, planned: Sequence[PlannedRun]) -> dict[str, Any]:
    """Return what ``sweep.json`` holds: enough for a report to miss a run that is not there."""
    return {
        "name": sweep.config.name,
        "baseline": sweep.baseline,
        "headline": sweep.config.headline,
        "variants": list(sweep.variants),
        "ours": sweep.config.ours,
        "seeds": sweep.config.seed_list,
        "runs": [
            {
                "variant": run.variant,
                "parameters": run.parameters,
                "seed": run.seed,
                "hash": run.hash,
                "directory": f"{run.directory.parent.name}/{run.directory.name}",
            }
            for run in planned
        ],
    }


def write_plan(sweep: Sweep, planned: Sequence[PlannedRun], command: Command | None = None) -> Path:
    """Write ``sweep.json`` into the sweep's directory, whole or not at all, and return its path.

    Args:
        sweep: what ``planned`` came of.
        planned: its runs.
        command: the one that made the plan; None where none did.

    Raises:
        OSError: the directory cannot be written.
    """
    directory = planned[0].directory.parent.parent
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "sweep.json"
    commands = {} if command is None else {"commands": with_earlier(path, command)}
    write_json(path, plan_record(sweep, planned) | commands)
    return path
