"""From a sweep to its list of runs: variants × parameters × seeds.

Precedence: a field's default, ``base``, the variant, the grid point, the command line. What is
given on the command line holds for every run, and a grid over that very key shrinks to it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.config.run_file import SectionChecker, build_run
from runners.config.schema import RunConfig
from runners.config.sweep_file import Sweep, read_sweep
from runners.config.yaml_nodes import ConfigError, Node, merge, override, show

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
    hash_of = data_hash or task_data_hash
    hashes: dict[str, str] = {}
    checker = SectionChecker()
    used: set[int] = set()
    planned: list[PlannedRun] = []
    owners: dict[str, tuple[str, dict[str, Any]]] = {}
    directory = Path(root) / sweep.config.name
    for point in itertools.product(*sweep.parameters.values()):
        grid = dict(zip(sweep.parameters, point, strict=True))
        parameters = {path: node.plain() for path, node in grid.items()}
        for variant, change in sweep.variants.items():
            node = merge(sweep.base, change)
            for path, value in (*grid.items(), *sweep.overrides):
                node = override(node, path, value)
            plain = {"variant": variant, **parameters}
            seeds = [
                s for s in sweep.config.seed_list if not _excluded(sweep, plain, node, s, used)
            ]
            if not seeds:
                continue
            config = build_run(_with_seed(node, seeds[0]), checker)
            key = json.dumps(config.task, sort_keys=True)
            if key not in hashes:
                hashes[key] = _hash_data(hash_of, config)
            digest = config.hash(hashes[key])
            other = owners.setdefault(digest, (variant, parameters))
            if other != (variant, parameters):
                raise _same_run(sweep, change, (variant, parameters), other)
            for seed in seeds:
                run = config if seed == seeds[0] else build_run(_with_seed(node, seed), checker)
                planned.append(
                    PlannedRun(
                        variant=variant,
                        parameters=parameters,
                        seed=seed,
                        config=run,
                        hash=digest,
                        directory=directory / f"{variant}-{digest}" / f"seed{seed}",
                    )
                )
    unused = [point for index, point in enumerate(sweep.exclude) if index not in used]
    if unused and not sweep.overrides:
        raise ConfigError(
            f"{show(unused[0].plain())} matches no run", path="exclude", place=unused[0].place
        )
    if not planned:
        raise ConfigError("exclude leaves no run", place=sweep.root.place)
    return planned


def _with_seed(node: Node, seed: int) -> Node:
    return Node({**node.value, "seed": Node(seed, node.place)}, node.place)


def _excluded(sweep: Sweep, point: dict[str, Any], node: Node, seed: int, used: set[int]) -> bool:
    hit = False
    for index, exclude in enumerate(sweep.exclude):
        matches = True
        for key, wanted in exclude.value.items():
            value = seed if key == "seed" else point.get(key, _lookup(node, key))
            matches = matches and value == wanted.plain()
        if matches:
            used.add(index)
            hit = True
    return hit


def _lookup(node: Node, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(node.value, dict) or part not in node.value:
            return None
        node = node.value[part]
    return node.plain()


def _same_run(
    sweep: Sweep,
    change: Node,
    one: tuple[str, dict[str, Any]],
    other: tuple[str, dict[str, Any]],
) -> ConfigError:
    def describe(label: tuple[str, dict[str, Any]]) -> str:
        name, point = label
        values = ", ".join(f"{key}={show(value)}" for key, value in point.items())
        return f"{name} ({values})" if values else name

    place = change.place if one[0] != other[0] else sweep.root.place
    return ConfigError(
        f"{describe(one)} and {describe(other)} are the same run; a variant or grid value must "
        "change something",
        path=f"variants.{one[0]}",
        place=place,
    )


def _hash_data(hash_of: Callable[[dict[str, Any]], str], config: RunConfig) -> str:
    """Return the hash of a run's data; trouble with a user's own file names the config too."""
    from tasks.base.data_files import DataDamaged, DataMissing

    try:
        return hash_of(config.task)
    except (DataDamaged, DataMissing):  # of the machine, not of what the config says
        raise
    except ValueError as error:
        raise config.located(error, "task") from error


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


def write_plan(sweep: Sweep, planned: Sequence[PlannedRun]) -> Path:
    """Write ``sweep.json`` into the sweep's directory, whole or not at all, and return its path."""
    directory = planned[0].directory.parent.parent
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "sweep.json"
    partial = directory / "sweep.json.partial"
    text = json.dumps(plan_record(sweep, planned), indent=1, ensure_ascii=False) + "\n"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path
