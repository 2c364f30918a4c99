"""The files of a report, from the results of a sweep: CSV, Markdown, LaTeX, JSON, HTML, figures."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from runners.reporting import breakdown, comparison, depth_curves, tables
from runners.reporting.drawer import Drawer
from runners.reporting.figures import FiguresUnavailable
from runners.reporting.html.document import PageUnavailable, to_html
from runners.reporting.markup import escape_markdown, markdown_heading
from runners.reporting.results import Setting, SweepResults, load
from runners.reporting.run_result import to_plain
from runners.reporting.statistics import TOO_SMALL, Comparison, summarize
from tasks.base.console import make_console
from tasks.base.metrics import is_lower_better
from tasks.base.printable import printable
from tasks.base.storage import write_atomically

# --- writing ----------------------------------------------------------------------------

PAGE = "report.html"
FILES = (
    "results.csv",
    "breakdown.csv",
    "timings.csv",
    "summary.md",
    "summary.tex",
    "summary.json",
    PAGE,
)
"""What a report is made of, besides the figures."""


def write_report(
    directory: str | Path, *, with_figures: bool = True, drawer: Drawer | None = None
) -> tuple[SweepResults, str]:
    """Write every file of the report into a sweep's directory.

    Returns:
        What was read, and a line about figures that could not be drawn (empty if they were).

    Raises:
        ConfigError: the directory holds no sweep, or a file in it is damaged.
    """
    results = load(directory)
    return results, write_files(results, with_figures=with_figures, drawer=drawer)


def write_files(
    results: SweepResults, *, with_figures: bool = True, drawer: Drawer | None = None
) -> str:
    """Write the report of loaded results; return a line about figures not drawn, or nothing."""
    with Drawer() if drawer is None else contextlib.nullcontext(drawer) as artist:
        trouble = []
        draw = None
        if with_figures:
            try:
                draw = artist.begin(results, results.directory / "figures")
            except FiguresUnavailable as error:
                trouble.append(str(error))
        try:
            _write_texts(results)
        except PageUnavailable as error:
            trouble.insert(0, str(error))
        if draw is not None:
            draw()
    return "\n".join(trouble)


def _write_texts(results: SweepResults) -> None:
    """Write every file but the figures.

    Raises:
        PageUnavailable: all are written but the page, whose plotting library is not installed.
    """
    texts = (
        to_csv(results.frame()),
        to_csv(breakdown_rows(results)),
        to_csv(timings_rows(results)),
        to_markdown(results),
        to_latex(results),
        json.dumps(_finite(to_data(results)), indent=1, ensure_ascii=False) + "\n",
    )
    for name, text in zip(FILES[:-1], texts, strict=True):
        write_atomically(results.directory / name, text)
    write_atomically(results.directory / PAGE, to_html(results))


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by null, which JSON has."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(results: SweepResults) -> None:
    """Print the comparison and the problems: as tables on a terminal, as Markdown otherwise."""
    shown = [comparison.main_table(results)]
    problems = breakdown.problems_table(results)
    if problems:
        shown.append(problems)
    if not sys.stdout.isatty():
        print("\n".join(map(tables.to_markdown, shown)), end="")
        return
    console = make_console()
    for table in shown:
        console.print(tables.to_rich(table))
        for note in table.notes:
            console.print(Text(f"  {printable(note)}"))


# --- rows -------------------------------------------------------------------------------


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
    lines = [list(rows[0]), *(list(map(_cell, row.values())) for row in rows)]
    return "".join(",".join(map(_quoted, line)) + "\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


_SPECIAL = re.compile('[,"\n\r]')


def _quoted(text: str) -> str:
    # The csv module leaves a lone carriage return bare, at which it ends the row in reading.
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text


# --- summaries --------------------------------------------------------------------------


def report_tables(results: SweepResults) -> list[tables.Table]:
    """Return every table of the report, the comparison first."""
    problems = breakdown.problems_table(results)
    return [
        comparison.main_table(results),
        *([problems] if problems else []),
        *breakdown.depth_tables(results),
        *depth_curves.depth_curve_tables(results),
        *breakdown.breakdown_tables(results),
        breakdown.splits_table(results),
    ]


def to_markdown(results: SweepResults) -> str:
    """Return ``summary.md``."""
    parts = [
        f"# {markdown_heading(results.name)}\n",
        *map(tables.to_markdown, report_tables(results)),
    ]
    if results.unplanned:
        listed = escape_markdown(", ".join(results.unplanned))
        parts.append(f"Not in this sweep's current plan, and left out: {listed}\n")
    return "\n".join(parts)


def to_latex(results: SweepResults) -> str:
    """Return ``summary.tex``: every table, for ``\\input`` under ``\\usepackage{booktabs}``."""
    return "\n\n".join(map(tables.to_latex, report_tables(results))) + "\n"


def to_data(results: SweepResults) -> dict[str, Any]:
    """Return what ``summary.json`` holds: every number of the tables, unrounded."""
    tests, best = comparison.against_baseline(results), comparison.best_settings(results)
    return {
        "name": results.name,
        "baseline": results.baseline,
        "settings": [_setting_data(results, each, tests, best) for each in results.settings],
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


def _setting_data(
    results: SweepResults, setting: Setting, tests: dict[str, Comparison], best: set[str] | None
) -> dict[str, Any]:
    metric = results.headline_metric(setting)
    return {
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
            "split": results.headline_split(setting),
            "metric": metric,
            "is_lower_better": is_lower_better(metric),
        },
        "in_distribution_split": setting.first(lambda result: result.task.in_distribution_split),
        "scores": {
            split: {
                name: _summary_data(setting, split, name)
                for name in results.metrics()
                if setting.values(split, name)
            }
            for split in results.splits()
        },
        "test": _test_data(results, tests.get(setting.hash), metric),
        "is_best_or_not_distinguishable": None if best is None else setting.hash in best,
    }


def _test_data(
    results: SweepResults, test: Comparison | None, metric: str
) -> dict[str, Any] | None:
    if test is None:
        return None
    # A difference that is not significant has no direction.
    is_better = (test.difference < 0) == is_lower_better(metric) if test.is_different else None
    return {
        "against": results.baseline,
        "difference": test.difference,
        "p": test.p,
        "p_holm": test.adjusted,
        "is_exact": test.is_exact,
        "is_different": test.is_different,
        "is_better": is_better,
        "verdict": TOO_SMALL if test.adjusted is None else None,
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
