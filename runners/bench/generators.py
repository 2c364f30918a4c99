"""How fast tasks make their rows, in time of one core's processor.

Endless rows are made by number while a run goes on, as training asks for them; ``start`` is what
the first ones take longer, as the puzzles do that all others are forms of. Other tasks draw their
splits before the first step: there ``start`` is all, and the rate counts the rows of all splits.
Processor time does not grow where other programs run on the same cores, but for what they take of
caches and memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tasks
from runners.reporting.tables import Table
from tasks.base.lengths import LengthTask
from tasks.base.options import nearest
from tasks.base.positions import PositionRows
from tasks.base.task import ExampleTask
from tasks.puzzles.base import PuzzleTask

ROWS = 4096
"""Rows that are made together, as the columns of an endless split do."""
ENDLESS = (LengthTask, PuzzleTask)
DRAWN = (
    "cogs_like",
    "arithmetic",
    "addition",
    "multiplication",
    "table_lookup",
    "ctl",
    "ctl_plus",
    "listops",
    "logical_inference_like",
    "string_functions",
)
"""Tasks that draw fixed splits and need no files."""


def generated_tasks() -> list[str]:
    """Return the names of the tasks that make their rows, those without an end first."""
    classes = {name: tasks.task_class(name) for name in tasks.TASKS}
    endless = [name for name, cls in classes.items() if issubclass(cls, ENDLESS)]
    return [name for name in (*endless, *DRAWN) if not needs_files(classes[name])]


def needs_files(cls: type[tasks.Task[Any]]) -> bool:
    """Return whether a task needs files with its default options, as its entry in the menu says."""
    fetch = cls.about.fetch if cls.about else ""
    return bool(fetch) and not fetch.startswith("none")


def check_names(names: Sequence[str]) -> None:
    """Check the names of tasks.

    Raises:
        ValueError: one is no task that generates rows.
    """
    known = generated_tasks()
    for name in names:
        if name not in known:
            raise ValueError(f"--tasks {name}: expected {', '.join(known)}{nearest(name, known)}")


def time_generators(names: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Return the rows and the tokens that each task makes a second, with its defaults."""
    measured = []
    for name in names:
        task = tasks.create(name)
        assert isinstance(task, ExampleTask)
        rates = _endless(task, repeats) if isinstance(task, ENDLESS) else _drawn(name, repeats)
        measured.append({"task": name, **rates})
    return measured


def _endless(task: ExampleTask, repeats: int) -> dict[str, Any]:
    rows = task.split("train")
    assert isinstance(rows, PositionRows)
    samples, tokens = [], 0
    for number in range(repeats + 1):
        some = np.arange(number * ROWS, (number + 1) * ROWS)
        seconds, made = _timed(rows.arrays, some)
        samples.append(seconds)
        tokens = int(made.lengths.sum())
    seconds = statistics.median(samples[1:])
    return _rates(ROWS, tokens, seconds, max(samples[0] - seconds, 0.0))


def _drawn(name: str, repeats: int) -> dict[str, Any]:
    samples: list[float] = []
    splits: Any = {}
    for _ in range(repeats):
        splits = {}  # the rows of the round before go first
        seconds, splits = _timed(tasks.create(name).splits)
        samples.append(seconds)
    rows = [row for split in splits.values() for row in split]
    tokens = sum(len(row.source) + len(row.target) for row in rows)
    seconds = statistics.median(samples)
    return _rates(len(rows), tokens, seconds, seconds)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the processor time of a call, in seconds, and its result."""
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def _rates(rows: int, tokens: int, seconds: float, start: float) -> dict[str, Any]:
    return {
        "cpu_seconds": round(seconds, 6),
        "rows_per_second": round(rows / seconds),
        "tokens_per_second": round(tokens / seconds),
        "start_seconds": round(start, 3),
    }


def table(measured: Sequence[dict[str, Any]]) -> Table:
    """Return the rates as a table."""
    return Table(
        name="generators",
        title=f"rows made in a second of processor time, {ROWS} at a time or all splits, medians",
        columns=["task", "rows/s", "tokens/s", "start s"],
        rows=[
            [
                row["task"],
                f"{row['rows_per_second']:,}",
                f"{row['tokens_per_second']:,}",
                f"{row['start_seconds']:.1f}",
            ]
            for row in measured
        ],
    )
