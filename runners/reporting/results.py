"""What a sweep's directory holds: every run that was planned, and what became of it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runners.config.yaml_nodes import ConfigError
from runners.process.lease import holder
from tasks.base.metrics import HEADLINES
from tasks.base.options import nearest

Status = Literal["done", "running", "failed", "missing"]
Depth = int | tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run and its files."""

    variant: str
    parameters: dict[str, Any]
    seed: int
    hash: str
    directory: Path
    status: Status
    message: str = ""
    """Why it failed, or how far it is."""
    result: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def scores(self) -> Iterator[dict[str, Any]]:
        """Yield the scores of the run, split by split and depth by depth."""
        yield from self.result.get("scores", [])

    def score(self, split: str) -> dict[str, Any] | None:
        """Return the score of a split at the model's own depth, if there is one."""
        for score in self.scores():
            if score["split"] == split and score.get("is_default_depth", True):
                return score
        return None

    def value(self, split: str, metric: str) -> float | None:
        """Return a metric of a split at the model's own depth; None where it is not a number."""
        score = self.score(split)
        value = None if score is None else score["metrics"].get(metric)
        return None if value is None or not math.isfinite(value) else float(value)

    def learning_rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl`` that score a split on the way."""
        return [row for row in self.metrics_rows() if "split" in row]

    def metrics_rows(self) -> list[dict[str, Any]]:
        """Return the learning curve; a torn last line, which a kill can leave, is left out."""
        path = self.directory / "metrics.jsonl"
        rows = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A variant at a grid point, with its seeds: one row of a table."""

    variant: str
    parameters: dict[str, Any]
    hash: str
    runs: list[Run]

    @property
    def label(self) -> str:
        """Name for tables and legends."""
        if not self.parameters:
            return self.variant
        short = (f"{key.rpartition('.')[2]}={compact(v)}" for key, v in self.parameters.items())
        return f"{self.variant} ({', '.join(short)})"

    @property
    def done(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.status == "done"]

    def values(self, split: str, metric: str) -> list[float]:
        """Return every seed's value, in the order of the seeds; what is no number is left out."""
        found = (run.value(split, metric) for run in self.done)
        return [value for value in found if value is not None]

    def first(self, *path: str) -> Any:
        """Return a value of the first finished run's result, or None."""
        value: Any = self.done[0].result if self.done else {}
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """Everything that a report shows."""

    name: str
    directory: Path
    settings: list[Setting]
    baseline: str
    headline: dict[str, str]
    """``split`` and ``metric`` where the sweep's file names them."""
    strangers: list[str]
    """Run directories that the sweep's current plan does not hold."""
    ours: list[str] = field(default_factory=list)
    """Variants that the paper does not have."""

    @property
    def runs(self) -> list[Run]:
        """Every run, setting by setting."""
        return [run for setting in self.settings for run in setting.runs]

    @property
    def grid_keys(self) -> list[str]:
        """The keys of the grid, in the order of the file."""
        return list(dict.fromkeys(key for s in self.settings for key in s.parameters))

    def headline_split(self, setting: Setting) -> str | None:
        """Return the split of the main column."""
        return self.headline.get("split") or setting.first("task", "headline_split")

    def headline_metric(self, setting: Setting) -> str:
        """Return the metric of the main column: the one named, or what the task is judged by."""
        if "metric" in self.headline:
            return self.headline["metric"]
        for run in [*setting.done, *self.runs]:
            for score in run.scores():
                for metric in HEADLINES:
                    if metric in score["metrics"]:
                        return metric
        return self._metric_on_the_way or HEADLINES[0]

    @functools.cached_property
    def _metric_on_the_way(self) -> str | None:
        """The headline metric of a sweep of which no run has ended yet."""
        for run in self.runs:
            for row in run.learning_rows():
                for metric in HEADLINES:
                    if metric in row["metrics"]:
                        return metric
        return None

    def splits(self) -> list[str]:
        """Return every split that was scored, in the order of the results."""
        found = (score["split"] for run in self.runs for score in run.scores())
        return list(dict.fromkeys(found))

    def metrics(self) -> list[str]:
        """Return every metric that was taken, in the order of the results."""
        found = (name for run in self.runs for score in run.scores() for name in score["metrics"])
        return list(dict.fromkeys(found))


def compact(value: Any) -> str:
    """Return a grid value in few characters."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def depth_of(score: dict[str, Any]) -> Depth:
    """Return the repeats at which a score was taken; a pair where encoder and decoder differ."""
    repeats = score.get("repeats")
    if isinstance(repeats, list):
        return repeats[0] if len(set(repeats)) == 1 else (repeats[0], repeats[1])
    return repeats


# --- reading ----------------------------------------------------------------------------


def load(directory: str | Path) -> SweepResults:
    """Read a sweep's directory: the plan in ``sweep.json`` and the runs below.

    Without a plan, every run directory that is there counts, and the first variant by name is the
    baseline.

    Raises:
        ConfigError: there is no such directory, or no run in it; a file of a run is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        siblings = [p.name for p in directory.parent.glob("*")] if directory.parent.is_dir() else []
        raise ConfigError(f"{directory}: no such directory{nearest(directory.name, siblings)}")
    plan_path = directory / "sweep.json"
    plan = _read_json(plan_path) if plan_path.is_file() else _plan_from_disk(directory)
    if not plan["runs"]:
        raise ConfigError(
            f"{directory}: holds no run; expected a directory of python -m runners.sweep"
        )
    settings: dict[str, Setting] = {}
    known = set()
    for item in plan["runs"]:
        run = _read_run(directory / item["directory"], item)
        known.add(item["directory"])
        setting = settings.setdefault(
            f"{item['variant']}-{item['hash']}",
            Setting(
                variant=item["variant"], parameters=item["parameters"], hash=item["hash"], runs=[]
            ),
        )
        setting.runs.append(run)
    there = [f"{p.parent.name}/{p.name}" for p in sorted(directory.glob("*/seed*")) if p.is_dir()]
    return SweepResults(
        name=plan["name"],
        directory=directory,
        settings=list(settings.values()),
        baseline=plan["baseline"],
        headline=plan["headline"],
        strangers=[name for name in there if name not in known],
        ours=plan.get("ours", []),
    )


def _read_run(path: Path, item: dict[str, Any]) -> Run:
    def optional(name: str) -> dict[str, Any]:
        return _read_json(path / name) if (path / name).is_file() else {}

    status: Status = "missing"
    message = "interrupted" if (path / "checkpoints").is_dir() else "not started"
    result: dict[str, Any] = {}
    if (path / "result.json").is_file():
        status, message = "done", ""
        result = _read_json(path / "result.json")
        if any(
            value is None or not math.isfinite(value)
            for score in result.get("scores", [])
            for value in score["metrics"].values()
        ):
            message = "a score is not a number"
    elif (holding := holder(path)) is not None:
        status, message = "running", f"{holding}{_progress(path)}"
    elif (path / "error.json").is_file():
        error = _read_json(path / "error.json")
        status = "failed"
        step = f"after step {error['step']}: " if error.get("step") is not None else ""
        message = f"{step}{error.get('message', '')}"
    return Run(
        variant=item["variant"],
        parameters=item["parameters"],
        seed=item["seed"],
        hash=item["hash"],
        directory=path,
        status=status,
        message=" ".join(message.split()),
        result=result,
        timings=optional("timings.json"),
        environment=optional("env.json"),
    )


def _progress(path: Path) -> str:
    """Return how far a run's log is, or nothing."""
    run = Run(variant="", parameters={}, seed=0, hash="", directory=path, status="running")
    steps = [row["step"] for row in run.metrics_rows() if "step" in row]
    return f", at step {steps[-1]:,}" if steps else ""


def _plan_from_disk(directory: Path) -> dict[str, Any]:
    """Return a plan of the runs that are there, from their own records or directory names."""
    runs = []
    for path in directory.glob("*/seed*"):
        if not path.is_dir() or not path.name.removeprefix("seed").isdigit():
            continue
        record: dict[str, Any] = {}
        for name in ("result.json", "run.json"):
            if not record and (path / name).is_file():
                record = _read_json(path / name)
        variant, _, digest = path.parent.name.rpartition("-")
        runs.append(
            {
                "variant": record.get("variant", variant),
                "parameters": record.get("parameters", {}),
                "seed": int(path.name.removeprefix("seed")),
                "hash": record.get("hash", digest),
                "directory": f"{path.parent.name}/{path.name}",
            }
        )
    runs.sort(key=lambda run: (str(run["parameters"]), run["variant"], run["hash"], run["seed"]))
    return {
        "name": directory.resolve().name,
        "baseline": runs[0]["variant"] if runs else "",
        "headline": {},
        "runs": runs,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{path}: damaged: {error}; delete it to have the run made again"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: damaged: expected a JSON object")
    return data
