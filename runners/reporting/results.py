"""The results in a sweep's directory: every planned run, and what became of it.

For an analysis of your own::

    from runners.reporting import results

    rows = results.load("runs/quickstart").frame()         # a list of dicts, one per run and metric
    table = results.load("runs/quickstart").to_pandas()    # the same as a DataFrame
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from runners.config.commands import Command, run_command, single_command
from runners.config.labels import compact, setting_labels
from runners.config.yaml_nodes import ConfigError
from runners.reporting.run_result import RunResult, Score, Timings
from tasks.base.lease import holder
from tasks.base.lines import numbered_lines
from tasks.base.metrics import HEADLINES
from tasks.base.options import nearest

Status = Literal["done", "running", "failed", "missing"]
T = TypeVar("T")

NO_PANDAS = "pandas is not installed (pip install 'moeut-suite[frame]')"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A planned run, and what became of it."""

    variant: str
    parameters: dict[str, Any]
    seed: int
    hash: str
    directory: Path
    status: Status
    message: str = ""
    """Why it failed, or how far it is."""
    result: RunResult | None = None
    timings: Timings | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    command: Command = field(default_factory=list)
    """What makes it again."""

    @property
    def scores(self) -> list[Score]:
        """The scores of the run, split by split and depth by depth; none before it is done."""
        return [] if self.result is None else self.result.scores

    def score(self, split: str) -> Score | None:
        """Return the score of a split at the model's own depth, if there is one."""
        return self._own_scores.get(split)

    @functools.cached_property
    def _own_scores(self) -> dict[str, Score]:
        """The scores at the model's own depth by split; tables ask for them again and again."""
        found: dict[str, Score] = {}
        for score in self.scores:
            if score.is_default_depth:
                found.setdefault(score.split, score)
        return found

    def depth_scores(self, split: str) -> list[Score]:
        """Return the scores of a split over depths, all of them on the same rows."""
        return self._depth_scores.get(split, [])

    @functools.cached_property
    def _depth_scores(self) -> dict[str, list[Score]]:
        """The scores over depths by split, those of a curve alone where there is one."""
        found: dict[str, list[Score]] = {}
        for score in self.scores:
            if score.depth is not None:
                found.setdefault(score.split, []).append(score)
        return {
            split: [score for score in scores if score.of_curve] or scores
            for split, scores in found.items()
        }

    def value(self, split: str, metric: str) -> float | None:
        """Return a metric of a split at the model's own depth; None where it is not a number."""
        score = self.score(split)
        return None if score is None else score.value(metric)

    def learning_rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl`` that score a split on the way."""
        return [row for row in self.metrics_rows() if "split" in row]

    def metrics_rows(self) -> list[dict[str, Any]]:
        """Return the learning curve, without the torn last line that a kill can leave."""
        path = self.directory / "metrics.jsonl"
        rows = []
        if path.is_file():
            for _, line in numbered_lines(path.read_text(encoding="utf-8")):
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
    runs: list[Outcome]
    label: str
    """Name for tables and legends, which no other setting of the sweep has."""

    @property
    def variant_label(self) -> str:
        """Name where the grid values stand beside it: with the hash if they are not enough."""
        is_shared = self.label.endswith(f" {self.hash}")
        return f"{self.variant} {self.hash}" if is_shared else self.variant

    @functools.cached_property
    def done(self) -> list[Outcome]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]

    @functools.cached_property
    def results(self) -> list[RunResult]:
        """The results of the runs that have one, in the order of the seeds."""
        return [run.result for run in self.runs if run.result is not None]

    def values(self, split: str, metric: str) -> list[float]:
        """Return the value of every seed for which it is a number, in the order of the seeds."""
        found = (run.value(split, metric) for run in self.done)
        return [value for value in found if value is not None]

    def first(self, read: Callable[[RunResult], T]) -> T | None:
        """Return what ``read`` finds in the first result; None where there is no result."""
        return read(self.results[0]) if self.results else None


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """Everything that a report shows."""

    name: str
    directory: Path
    settings: list[Setting]
    baseline: str
    headline: dict[str, str]
    """``split`` and ``metric`` where the sweep's file names them."""
    unplanned: list[str]
    """Run directories that the sweep's current plan does not hold."""
    ours: list[str] = field(default_factory=list)
    """Variants that the paper does not have."""
    commands: list[Command] = field(default_factory=list)
    """What makes its runs again; empty where no sweep was planned."""
    page_command: Command = field(default_factory=list)
    """What makes its report again."""
    models_shown: int | None = None  # best models in figures; None: as many as can be told apart

    @functools.cached_property
    def runs(self) -> list[Outcome]:
        """Every run, setting by setting."""
        return [run for setting in self.settings for run in setting.runs]

    @functools.cached_property
    def grid_keys(self) -> list[str]:
        """The keys of the grid, in the order of the file."""
        return list(dict.fromkeys(key for s in self.settings for key in s.parameters))

    def headline_split(self, setting: Setting) -> str | None:
        """Return the split of the main column."""
        named = self.headline.get("split")
        return named or setting.first(lambda result: result.task.headline_split)

    def headline_metric(self, setting: Setting) -> str:
        """Return the metric of the main column: the one named, or what the task is judged by."""
        if "metric" in self.headline:
            return self.headline["metric"]
        return _headline(score for run in setting.done for score in run.scores) or self._headline

    @functools.cached_property
    def headline_metrics(self) -> set[str]:
        """The metrics of the main column over all settings; every other table asks for them."""
        return {self.headline_metric(setting) for setting in self.settings}

    @functools.cached_property
    def _headline(self) -> str:
        """What all that was taken is judged by, for a setting of which no run has ended yet."""
        ended = _headline(score for run in self.runs for score in run.scores)
        if ended is not None:
            return ended
        for run in self.runs:
            for row in run.learning_rows():
                for metric in HEADLINES:
                    if metric in row["metrics"]:
                        return metric
        return HEADLINES[0]

    def splits(self) -> list[str]:
        """Return every split that was scored, in the order of the results."""
        return list(self._scored)

    def metrics(self) -> list[str]:
        """Return every metric that was taken, in the order of the results."""
        return list(dict.fromkeys(name for names in self._scored.values() for name in names))

    @functools.cached_property
    def _scored(self) -> dict[str, list[str]]:
        """Split → the metrics that were taken on it; tables ask for them once a setting."""
        found: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for score in run.scores:
                found.setdefault(score.split, {}).update(dict.fromkeys(score.metrics))
        return {split: list(names) for split, names in found.items()}

    @functools.cached_property
    def curve_scores(self) -> dict[str, Score]:
        """Split → the first score of a curve over depth that was taken on a part of its rows."""
        found: dict[str, Score] = {}
        for run in self.runs:
            for score in run.scores:
                if score.of_curve and score.depth is not None:
                    found.setdefault(score.split, score)
        return found

    # --- tidy rows ----------------------------------------------------------------------

    def frame(self) -> list[dict[str, Any]]:
        """Return one row per run and metric; a run without a result has one row that says so.

        A row holds no times, so that the same runs give the same rows after any interruption.
        """
        rows = []
        for run in self.runs:
            result = run.result
            head = self.identity(run) | {
                "status": run.status,
                "select": None if result is None else result.select,
                "step": None if result is None else result.step,
                "model_parameters": None if result is None else result.model.parameters,
                "macs_per_token": None if result is None else result.model.macs_per_token,
                "tokens_seen": None if result is None else result.tokens_seen,
            }
            rows += [head | row for row in _score_rows(run.scores) or [dict.fromkeys(_SCORE_KEYS)]]
        return rows

    def to_pandas(self) -> Any:
        """Return ``frame()`` as a ``pandas.DataFrame``.

        Raises:
            ImportError: pandas is not installed; the message says how to get it.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(NO_PANDAS) from error
        return pandas.DataFrame(self.frame())

    def identity(self, run: Outcome) -> dict[str, Any]:
        """Return the columns that say which run a row is of."""
        grid = {key: run.parameters.get(key, "") for key in self.grid_keys}
        grid = {key: v if isinstance(v, str) else compact(v) for key, v in grid.items()}
        return {
            "sweep": self.name,
            "variant": run.variant,
            **grid,
            "seed": run.seed,
            "hash": run.hash,
        }


def _headline(scores: Iterable[Score]) -> str | None:
    """Return the metric that a task is judged by, of the first score that has one."""
    for score in scores:
        for metric in HEADLINES:
            if metric in score.metrics:
                return metric
    return None


_SCORE_KEYS = ("split", "repeats", "is_default_depth", "metric", "value", "rows", "rows_available")


def _score_rows(scores: list[Score]) -> list[dict[str, Any]]:
    return [
        {
            "split": score.split,
            "repeats": score.shown_repeats,
            "is_default_depth": score.is_default_depth,
            "metric": metric,
            "value": value,
            "rows": score.rows,
            "rows_available": score.rows_available,
        }
        for score in scores
        for metric, value in score.metrics.items()
    ]


# --- reading ----------------------------------------------------------------------------


def load(directory: str | Path) -> SweepResults:
    """Read a sweep's directory: the plan in ``sweep.json`` and the runs below.

    Without a plan, every run directory counts, and the first variant by name is the baseline.

    Raises:
        ConfigError: there is no such directory, or no run in it; a file of a run is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        siblings = [p.name for p in directory.parent.glob("*")] if directory.parent.is_dir() else []
        raise ConfigError(f"{directory}: no such directory{nearest(directory.name, siblings)}")
    plan = _read(directory / "sweep.json", dict) or _plan_from_disk(directory)
    if not plan["runs"]:
        raise ConfigError(
            f"{directory}: holds no run; expected a directory of python -m runners.sweep"
        )
    known = {item["directory"] for item in plan["runs"]}
    commands = plan.get("commands", [])
    there = [f"{p.parent.name}/{p.name}" for p in sorted(directory.glob("*/seed*")) if p.is_dir()]
    return SweepResults(
        name=plan["name"],
        directory=directory,
        settings=_read_settings(directory, plan),
        baseline=plan["baseline"],
        headline=plan["headline"],
        unplanned=[name for name in there if name not in known],
        ours=plan.get("ours", []),
        commands=commands,
        # Where a sweep's command, which names no folder of runs, puts it.
        page_command=["runners.report", f"runs/{plan['name']}" if commands else _shown(directory)],
    )


def _shown(directory: Path) -> str:
    """Return where a sweep's directory lies as a command names it, from the folder above runs."""
    return "/".join(directory.resolve().parts[-2:])


def _read_settings(directory: Path, plan: dict[str, Any]) -> list[Setting]:
    """Return the planned runs by setting, in the order of the plan."""
    runs: dict[tuple[str, str], list[Outcome]] = {}
    for item in plan["runs"]:
        run = _read_run(directory / item["directory"], item, plan.get("commands", []))
        runs.setdefault((run.variant, run.hash), []).append(run)
    first = [found[0] for found in runs.values()]
    labels = setting_labels([(run.variant, run.parameters, run.hash) for run in first])
    return [
        Setting(
            variant=run.variant, parameters=run.parameters, hash=run.hash, runs=found, label=label
        )
        for run, found, label in zip(first, runs.values(), labels, strict=True)
    ]


def _read_run(path: Path, item: dict[str, Any], commands: list[Command]) -> Outcome:
    status, message, result = _read_status(path)
    environment = _read(path / "env.json", dict) or {}
    return Outcome(
        variant=item["variant"],
        parameters=item["parameters"],
        seed=item["seed"],
        hash=item["hash"],
        directory=path,
        status=status,
        message=" ".join(message.split()),
        result=result,
        timings=_read(path / "timings.json", Timings.from_json),
        environment=environment,
        command=(
            run_command(commands[0], item["variant"], item["parameters"], item["seed"])
            if commands
            else single_command(
                environment.get("argv"), f"{_shown(path.parents[1])}/{item['directory']}"
            )
        ),
    )


def _read_status(path: Path) -> tuple[Status, str, RunResult | None]:
    """Return what the files of a run say of it: its state, why, and its result."""
    result = _read(path / "result.json", RunResult.from_json)
    if result is not None:
        values = [value for score in result.scores for value in score.metrics.values()]
        return "done", "" if all(map(math.isfinite, values)) else "a score is not a number", result
    holding = holder(path)
    if holding is not None:
        return "running", f"{holding}{_progress(path)}", None
    error = _read(path / "error.json", dict)
    if error is not None:
        step = f"after step {error['step']}: " if error.get("step") is not None else ""
        return "failed", f"{step}{error.get('message', '')}", None
    return "missing", "interrupted" if (path / "checkpoints").is_dir() else "not started", None


def _progress(path: Path) -> str:
    """Return how far a run's log is, or nothing."""
    run = Outcome(variant="", parameters={}, seed=0, hash="", directory=path, status="running")
    steps = [row["step"] for row in run.metrics_rows() if "step" in row]
    return f", at step {steps[-1]:,}" if steps else ""


def _plan_from_disk(directory: Path) -> dict[str, Any]:
    """Return a plan of the runs that are there, from their own records or directory names."""
    runs = []
    for path in directory.glob("*/seed*"):
        if not path.is_dir() or not path.name.removeprefix("seed").isdigit():
            continue
        record = _read(path / "result.json", dict) or _read(path / "run.json", dict) or {}
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


def _read(path: Path, convert: Callable[[dict[str, Any]], T]) -> T | None:
    """Return the content of a JSON file, converted; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("expected a JSON object")
        return convert(data)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{path}: damaged: {error}; delete it to have the run made again"
        ) from error
