"""What a driver says of runs that are executed elsewhere, from what their directories say."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners.process.messages import Ended, RunEnd, Started, TrainingProgress
from runners.process.run_directory import RunDirectory
from runners.sweeping.executor import Job, OnMessage
from tasks.base.command_line import BAD_INPUT

TAIL_BYTES = 4096
"""Bytes at the end of a learning curve in which its last row is looked for."""


class Watch:
    """Turn the states of distant runs into messages.

    Args:
        jobs: what is executed.
        on_message: gets the messages.
    """

    def __init__(self, jobs: Sequence[Job], on_message: OnMessage) -> None:
        self._on_message = on_message
        self._steps = {job.directory: job.steps for job in jobs}
        self._started: set[Path] = set()
        self._shown: dict[Path, int] = {}
        """The step that was shown last."""
        self._first: dict[Path, tuple[float, int]] = {}
        """When the first row of a start was seen, and the tokens that had been read by then."""

    def is_running(self, directory: Path) -> None:
        """Say that a run is at work, and how far it is if that has changed."""
        self._start(directory)
        row = last_row(RunDirectory(directory).metrics)
        if row is None or row["step"] == self._shown.get(directory):
            return
        self._shown[directory] = row["step"]
        message = TrainingProgress(
            step=row["step"],
            steps=self._steps[directory],
            loss=row["loss"],
            tokens_per_second=self._speed(directory, row),
        )
        self._on_message(directory, message)

    def _speed(self, directory: Path, row: dict[str, Any]) -> float:
        """Return tokens a second, from the row or from when rows were seen; 0 at the first one."""
        if "speed" in row:
            return float(row["speed"].get("tokens_per_second", 0.0))
        now, tokens = time.monotonic(), row.get("tokens_seen", 0)
        began, before = self._first.setdefault(directory, (now, tokens))
        return (tokens - before) / (now - began) if now > began else 0.0

    def has_ended(self, directory: Path, *, reason: str, exit_status: int | None = None) -> None:
        """Say that nothing executes a run any more.

        Args:
            directory: the run's.
            reason: what to say of a run that has neither a result nor an error.
            exit_status: of its process, where it is known.
        """
        self._start(directory)
        self._leave(directory)
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
            self._leave(directory)
            self._on_message(directory, Ended("stopped", "saved, and waits for its next turn"))

    def _start(self, directory: Path) -> None:
        if directory not in self._started:
            self._started.add(directory)
            self._on_message(directory, Started())

    def _leave(self, directory: Path) -> None:
        self._started.discard(directory)
        self._first.pop(directory, None)  # it says nothing of the speed of the next start


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
