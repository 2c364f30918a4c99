"""Several sweeps as one, where they share task and metric."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from runners.config.yaml_nodes import ConfigError
from runners.reporting.comparison import common
from runners.reporting.results import Setting, SweepResults


def together(sweeps: Sequence[SweepResults], directory: Path) -> SweepResults:
    """Return the settings of several sweeps as those of one, each named after its sweep.

    The baseline is that of the first sweep.

    Args:
        sweeps: at least two.
        directory: where the report of them all goes.

    Raises:
        ConfigError: a sweep has no result, or another task, other data, another split or metric.
    """
    first = sweeps[0]
    for other in sweeps:
        for name, value in _measured(other).items():
            expected = _measured(first)[name]
            if value != expected:
                raise ConfigError(
                    f"{other.directory}: its {name} is {_shown(value)}, that of {first.directory} "
                    f"is {_shown(expected)}; sweeps are compared where they share task and metric"
                )
    names = [sweep.name for sweep in sweeps]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return SweepResults(
        name=" + ".join(names),
        directory=directory,
        settings=[
            _renamed(setting, name, number)
            for number, (name, sweep) in enumerate(zip(names, sweeps, strict=True))
            for setting in sweep.settings
        ],
        baseline=f"{names[0]}: {first.baseline}",
        headline=first.headline,
        unplanned=[],
        ours=[
            f"{name}: {variant}"
            for name, sweep in zip(names, sweeps, strict=True)
            for variant in sweep.ours
        ],
        commands=(
            [command for sweep in sweeps for command in sweep.commands]
            if all(sweep.commands for sweep in sweeps)
            else []
        ),
        page_command=["runners.compare", *(sweep.page_command[-1] for sweep in sweeps)],
    )


def _measured(sweep: SweepResults) -> dict[str, Any]:
    """Return what has to be the same in sweeps that are compared."""
    if not any(run.result for run in sweep.runs):
        raise ConfigError(f"{sweep.directory}: no run has a result yet")
    tasks = {run.result.task.name for run in sweep.runs if run.result is not None}
    return {
        "task": sorted(tasks),
        "headline split": common(sweep, sweep.headline_split),
        "metric": common(sweep, sweep.headline_metric),
        "data": sorted({_task_section(run.directory) for run in sweep.runs} - {""}),
    }


def _task_section(directory: Path) -> str:
    path = directory / "config.yaml"
    if not path.is_file():
        return ""
    return json.dumps((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("task"))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _renamed(setting: Setting, sweep: str, number: int) -> Setting:
    variant = f"{sweep}: {setting.variant}"
    # The same config may stand in two sweeps, and tests tell settings apart by their hash.
    digest = f"{setting.hash}-{number}"
    runs = [dataclasses.replace(run, variant=variant, hash=digest) for run in setting.runs]
    label = f"{sweep}: {setting.label}"
    return dataclasses.replace(setting, variant=variant, hash=digest, label=label, runs=runs)
