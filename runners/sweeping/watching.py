"""What a driver says of runs that are executed elsewhere, from what their directories say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runners.config.schema import ConfigError
from runners.process.messages import Ended, RunEnd, Started, TrainingProgress
from runners.process.run_directory import RunDirectory
from runners.sweeping.executor import OnMessage
from tasks.base.command_line import BAD_INPUT

TAIL_BYTES = 4096
"""Bytes at the end of a learning curve in which its last row is looked for."""


class Watch:
    """Turn the states of distant runs into messages.

    Args:
        on_message: gets them.
    """

    def __init__(self, on_message: OnMessage) -> None:
        self._on_message = on_message
        self._started: set[Path] = set()
        self._steps: dict[Path, int] = {}
        self._last_rows: dict[Path, tuple[int, dict[str, Any]]] = {}

    def is_running(self, directory: Path) -> None:
        """Say that a run is at work, and how far it is if that has changed."""
        self._start(directory)
        row = last_row(RunDirectory(directory).metrics)
        if row is None or row["step"] == self._last_rows.get(directory, (-1, {}))[0]:
            return
        self._last_rows[directory] = row["step"], row
        steps = self._num_steps(directory)
        if steps:
            self._on_message(
                directory,
                TrainingProgress(
                    step=row["step"],
                    steps=steps,
                    loss=row["loss"],
                    tokens_per_second=row.get("speed", {}).get("tokens_per_second", 0.0),
                ),
            )

    def has_ended(self, directory: Path, *, reason: str, exit_status: int | None = None) -> None:
        """Say that nothing executes a run any more.

        Args:
            directory: the run's.
            reason: what to say of a run that has neither a result nor an error.
            exit_status: of its process, where it is known.
        """
        self._start(directory)
        self._started.discard(directory)
        files = RunDirectory(directory)
        found = files.status()
        status: RunEnd = "stopped"
        if found == "done":
            self._on_message(directory, Ended("done"))
            return
        if found == "failed":
            status, reason = "failed", files.failure()
        elif exit_status == BAD_INPUT:
            status, reason = "refused", f"its config is refused; see {files.log}"
        self._on_message(directory, Ended(status, reason))

    def is_back(self, directory: Path) -> None:
        """Say that a run waits for its next turn."""
        if directory in self._started:
            self._started.discard(directory)
            self._on_message(directory, Ended("stopped", "saved, and waits for its next turn"))

    def _start(self, directory: Path) -> None:
        if directory not in self._started:
            self._started.add(directory)
            self._on_message(directory, Started())

    def _num_steps(self, directory: Path) -> int:
        if directory not in self._steps:
            try:
                self._steps[directory] = RunDirectory(directory).read_config().train.steps
            except ConfigError:
                self._steps[directory] = 0
        return self._steps[directory]


def last_row(path: Path) -> dict[str, Any] | None:
    """Return the last row of training in a learning curve, or None if there is none to be seen."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
            lines = stream.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "loss" in row and "step" in row:
            return row
    return None
