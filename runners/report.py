"""Tables, statistics and figures of a sweep, from what its runs left on disk.

::

    python -m runners.report runs/quickstart

writes into the sweep's directory:

    results.csv       one row per run and metric; no times, so the same bytes after any interruption
    breakdown.csv     one row per run and category, difficulty or row of a task's own table
    timings.csv       one row per run
    summary.md        the tables; summary.tex: for a paper (booktabs); summary.json: all numbers
    figures/          difficulty, depth, learning: PNG and PDF
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners.config.yaml_nodes import ConfigError
from runners.process import signals
from runners.reporting import comparison, figures, tables
from runners.reporting.results import Setting, SweepResults, load
from runners.reporting.run_result import to_plain
from runners.reporting.statistics import TOO_SMALL, summarize
from tasks.base.command_line import Parser
from tasks.base.metrics import is_lower_better
from tasks.base.options import nearest

EXIT_DONE, EXIT_BAD_INPUT = 0, 2


# --- tidy files -------------------------------------------------------------------------


def breakdown_rows(results: SweepResults) -> list[dict[str, Any]]:
    """Return one row per run, score and category, difficulty or row of a task's own table."""
    return [
        results.identity(run)
        | {
            "split": score.split,
            "repeats": score.shown_repeats,
            "table": table,
            "row": key,
            "metric": metric,
            "value": value,
            "rows": cell.get("rows"),
        }
        for run in results.runs
        for score in run.scores
        for table, cells in score.groups().items()
        for key, cell in cells.items()
        for metric, value in cell.items()
        if metric != "rows"
    ]


TIMES = ("wall_seconds", "train_seconds", "evaluate_seconds", "tokens_per_second", "starts")


def timings_rows(results: SweepResults) -> list[dict[str, Any]]:
    """Return one row per run with its times."""
    return [
        results.identity(run)
        | {"status": run.status}
        | {name: getattr(run.timings, name, None) for name in TIMES}
        | {"device": run.environment.get("device")}
        for run in results.runs
    ]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV: LF line ends, floats in full, empty where there is no value."""
    if not rows:
        return ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return stream.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


# --- summaries --------------------------------------------------------------------------


def report_tables(results: SweepResults) -> list[tables.Table]:
    """Return every table of the report, the comparison first."""
    problems = comparison.problems_table(results)
    return [
        comparison.main_table(results),
        *([problems] if problems else []),
        *comparison.depth_tables(results),
        *comparison.breakdown_tables(results),
        comparison.splits_table(results),
    ]


def to_markdown(results: SweepResults) -> str:
    """Return ``summary.md``."""
    parts = [f"# {results.name}\n", *map(tables.to_markdown, report_tables(results))]
    if results.unplanned:
        listed = ", ".join(results.unplanned)
        parts.append(f"Not in this sweep's current plan, and left out: {listed}\n")
    return "\n".join(parts)


def to_latex(results: SweepResults) -> str:
    """Return ``summary.tex``: every table, for ``\\input`` under ``\\usepackage{booktabs}``."""
    return "\n\n".join(map(tables.to_latex, report_tables(results))) + "\n"


def to_data(results: SweepResults) -> dict[str, Any]:
    """Return what ``summary.json`` holds: every number of the tables, unrounded."""
    tests, best = comparison.against_baseline(results), comparison.best_settings(results)
    settings = []
    for setting in results.settings:
        split, metric = results.headline_split(setting), results.headline_metric(setting)
        test = tests.get(setting.hash)
        settings.append(
            {
                "variant": setting.variant,
                "parameters": setting.parameters,
                "hash": setting.hash,
                "runs": {
                    status: sum(run.status == status for run in setting.runs)
                    for status in ("done", "running", "failed", "missing")
                },
                "model": setting.first(lambda result: to_plain(result.model)),
                "select": setting.first(lambda result: result.select),
                "tokens_seen": setting.first(lambda result: result.tokens_seen),
                "wall_seconds": comparison.wall_seconds(setting),
                "headline": {
                    "split": split,
                    "metric": metric,
                    "is_lower_better": is_lower_better(metric),
                },
                "in_distribution_split": setting.first(
                    lambda result: result.task.in_distribution_split
                ),
                "scores": {
                    name: {
                        m: _summary_data(setting, name, m)
                        for m in results.metrics()
                        if setting.values(name, m)
                    }
                    for name in results.splits()
                },
                "test": None
                if test is None
                else {
                    "against": results.baseline,
                    "difference": test.difference,
                    "p": test.p,
                    "p_holm": test.adjusted,
                    "is_different": test.is_different,
                    # Only of a difference that is there can it be said which way it goes.
                    "is_better": (test.difference < 0) == is_lower_better(metric)
                    if test.is_different
                    else None,
                    "verdict": TOO_SMALL if test.adjusted is None else None,
                },
                "is_best_or_not_distinguishable": None if best is None else setting.hash in best,
            }
        )
    return {
        "name": results.name,
        "baseline": results.baseline,
        "settings": settings,
        "problems": [
            {
                "variant": run.variant,
                "parameters": run.parameters,
                "seed": run.seed,
                "status": run.status,
                "message": run.message,
            }
            for run in results.runs
            if run.status != "done" or run.message
        ],
        "notes": comparison.main_table(results).notes,
        "not_in_plan": results.unplanned,
    }


def _summary_data(setting: Setting, split: str, metric: str) -> dict[str, Any]:
    summary = summarize(setting.values(split, metric))
    seeds = {str(run.seed): run.value(split, metric) for run in setting.done}
    return {
        "n": summary.n,
        "mean": summary.mean,
        "std": summary.std,
        "interval": summary.interval,
        "seeds": seeds,
    }


# --- writing ----------------------------------------------------------------------------


def write_report(directory: str | Path, *, with_figures: bool = True) -> tuple[SweepResults, str]:
    """Write every file of the report into a sweep's directory.

    Returns:
        What was read, and a line about figures that could not be drawn (empty if they were).

    Raises:
        ConfigError: the directory holds no sweep, or a file in it is damaged.
    """
    results = load(directory)
    return results, write_files(results, with_figures=with_figures)


def write_files(results: SweepResults, *, with_figures: bool = True) -> str:
    """Write the report of loaded results; return a line about figures not drawn, or nothing."""
    files = {
        "results.csv": to_csv(results.frame()),
        "breakdown.csv": to_csv(breakdown_rows(results)),
        "timings.csv": to_csv(timings_rows(results)),
        "summary.md": to_markdown(results),
        "summary.tex": to_latex(results),
        "summary.json": json.dumps(_finite(to_data(results)), indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        partial = results.directory / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, results.directory / name)
    if not with_figures:
        return ""
    try:
        figures.draw_all(results, results.directory / "figures")
    except figures.FiguresUnavailable as error:
        return str(error)
    return ""


def _finite(value: Any) -> Any:
    """Return data in which what is not a number is null, as JSON wants it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(results: SweepResults) -> None:
    """Print the comparison and the problems: as tables on a terminal, as Markdown otherwise."""
    shown = [comparison.main_table(results)]
    problems = comparison.problems_table(results)
    if problems:
        shown.append(problems)
    if not sys.stdout.isatty():
        print("\n".join(map(tables.to_markdown, shown)), end="")
        return
    from rich.console import Console

    console = Console()
    for table in shown:
        console.print(tables.to_rich(table))
        for note in table.notes:
            console.print(f"  {note}", markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m runners.report`` and return its exit status."""
    parser = Parser(
        prog="python -m runners.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP", help="directory of a sweep, as runs/quickstart")
    parser.add_argument("--baseline", help="variant that the others are tested against")
    parser.add_argument("--split", help="split of the main column")
    parser.add_argument("--metric", help="metric of the main column")
    parser.add_argument("--no-figures", action="store_true", help="write tables alone")
    options = parser.parse_args(arguments)
    try:
        results = _with_choices(load(options.sweep), options)
        trouble = write_files(results, with_figures=not options.no_figures)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    print_report(results)
    print(f"\nwritten to {results.directory}: results.csv, summary.md, summary.tex, summary.json")
    if trouble:
        print(trouble, file=sys.stderr)
    return EXIT_DONE


def _with_choices(results: SweepResults, options: argparse.Namespace) -> SweepResults:
    """Return the results with what the command line chooses instead of the sweep's file."""
    choices: dict[str, tuple[str | None, list[str]]] = {
        "baseline": (options.baseline, list(dict.fromkeys(s.variant for s in results.settings))),
        "split": (options.split, results.splits()),
        "metric": (options.metric, results.metrics()),
    }
    for name, (value, allowed) in choices.items():
        if value is not None and value not in allowed:
            raise ConfigError(
                f"command line: --{name}={value!r}: expected one of {', '.join(allowed)}"
                f"{nearest(value, allowed)}"
            )
    named = {
        name: value
        for name, (value, _) in choices.items()
        if value is not None and name in ("split", "metric")
    }
    return dataclasses.replace(
        results,
        baseline=options.baseline or results.baseline,
        headline={**results.headline, **named},
    )


if __name__ == "__main__":
    signals.exit_with(main)
