"""How fast the generated tasks make their rows, as training asks for them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import tasks
from runners.reporting.tables import Table
from tasks.base.lengths import LengthTask
from tasks.base.options import nearest

ROWS = 4096
"""Rows that are made together, as the columns of an endless split do."""


def generated_tasks() -> list[str]:
    """Return the names of the tasks whose rows are made while a run goes on."""
    return [name for name in tasks.TASKS if issubclass(tasks.task_class(name), LengthTask)]


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
    """Return the rows and the tokens of train that each task makes a second, with its defaults."""
    measured = []
    for name in names:
        rows = tasks.create(name).split("train")
        samples, tokens = [], 0
        for number in range(repeats + 1):  # the first one warms up
            start = time.perf_counter()
            made = rows.arrays(np.arange(number * ROWS, (number + 1) * ROWS))
            samples.append(time.perf_counter() - start)
            tokens = int(made.lengths.sum())
        seconds = statistics.median(samples[1:])
        measured.append(
            {
                "task": name,
                "seconds": round(seconds, 6),
                "rows_per_second": round(ROWS / seconds),
                "tokens_per_second": round(tokens / seconds),
            }
        )
    return measured


def table(measured: Sequence[dict[str, Any]]) -> Table:
    """Return the rates as a table."""
    return Table(
        name="generators",
        title=f"generated rows of train, {ROWS} at a time, medians",
        columns=["task", "rows/s", "tokens/s"],
        rows=[
            [row["task"], f"{row['rows_per_second']:,}", f"{row['tokens_per_second']:,}"]
            for row in measured
        ],
    )
