"""What a run writes down on its way: learning curve, times, and how far it is.

Everything is timed by one ``Clock``, which keeps the seconds of scoring apart. Where several ranks
train, all of them keep a journal, and that of rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.process.messages import Notice, OnProgress, ScoringProgress, TrainingProgress
from runners.process.run_directory import MetricsLog, RunDirectory
from runners.reporting.run_result import Timings
from tasks.base.lease import Lease
from tasks.base.storage import write_json

if TYPE_CHECKING:
    from runners.training.trackers import Tracker, Warn

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
"""Least time between two messages about a run's progress."""


class Clock:
    """Counts the seconds since it was made; those spent on scoring apart from the others."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.scoring_seconds = 0.0

    @property
    def seconds(self) -> float:
        """All seconds since the clock was made."""
        return time.monotonic() - self._began

    @property
    def training_seconds(self) -> float:
        """Seconds in which nothing was scored."""
        return self.seconds - self.scoring_seconds

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Count what happens in this context as scoring; contexts must not be nested."""
        began = self.seconds
        try:
            yield
        finally:
            self.scoring_seconds += self.seconds - began


class Lap:
    """Training seconds and tokens since a mark on the clock.

    Args:
        clock: the clock of the run.
        tokens: read so far.
    """

    def __init__(self, clock: Clock, tokens: int) -> None:
        self._clock = clock
        self._mark(tokens)

    def _mark(self, tokens: int) -> None:
        self._seconds, self._tokens = self._clock.training_seconds, tokens

    def read(self, tokens: int) -> tuple[float, int]:
        """Return seconds and tokens since the mark, of ``tokens`` read so far."""
        return self._clock.training_seconds - self._seconds, tokens - self._tokens

    def restart(self, tokens: int) -> tuple[float, int]:
        """Return the same as ``read``, and set the mark here."""
        lap = self.read(tokens)
        self._mark(tokens)
        return lap


class Journal:
    """Writes ``metrics.jsonl``, TensorBoard's files and ``timings.json``, and reports progress.

    A context, at whose end the files are closed and the times written, also of a run that failed.

    Args:
        files: the directory of the run.
        clock: made when the run began in this process.
        writes: whether this process is the one that writes.
        on_progress: gets the messages of a process that writes.
        lease: that of the directory; once it is lost, nothing is written any more.
    """

    def __init__(
        self,
        files: RunDirectory,
        clock: Clock,
        *,
        writes: bool,
        on_progress: OnProgress,
        lease: Lease | None = None,
    ) -> None:
        self.clock = clock
        self._files = files
        self._writes = writes
        self._on_progress = on_progress
        self._lease = lease
        self._metrics: MetricsLog | None = None
        self._board: Board | None = None
        self._trackers: list[Tracker] = []
        self._training: Lap | None = None
        self._shown_at = -PROGRESS_SECONDS
        self._earlier = _read_timings(files)
        self._timings = dataclasses.replace(self._earlier, starts=self._earlier.starts + 1)

    def __enter__(self) -> Journal:
        self.write_timings()
        return self

    def __exit__(self, *error: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._board is not None:
            self._board.close()
        for tracker in self._trackers:
            tracker.close()
        try:
            self.write_timings()
        except OSError as problem:  # a full disk must not hide why the run has failed
            logger.error("%s: cannot be written: %s", self._files.timings, problem)

    def open(
        self,
        *,
        size: int,
        step: int,
        tensorboard: bool,
        open_trackers: Callable[[Warn], list[Tracker]] | None = None,
    ) -> None:
        """Open the learning curve where training goes on.

        Args:
            size: bytes of ``metrics.jsonl`` to keep; a notice says if it has lost some.
            step: last step of the checkpoint; later ones on the board are hidden.
            tensorboard: whether to write the board, too.
            open_trackers: makes what gets the rows besides, given where to warn; None: nothing.
        """
        if self._writes:
            self._metrics = MetricsLog(self._files.metrics, size=size, warn=self.notice)
            if tensorboard:
                self._board = Board(self._files.path / "tensorboard", step=step)
            if open_trackers is not None:
                self._trackers = open_trackers(self.notice)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the learning curve."""
        if self._is_lost():
            return
        if self._metrics is not None:
            self._metrics.append(row)
        if self._board is not None:
            self._board.add(row)
        for tracker in self._trackers:
            tracker.add(dict(scalars(row)), row["step"])

    def _is_lost(self) -> bool:
        return self._lease is not None and not self._lease.is_held()

    def flush(self) -> int | None:
        """Bring the learning curve to the disk; return its bytes, None where nothing is written."""
        return None if self._metrics is None else self._metrics.flush()

    def notice(self, text: str) -> None:
        """Log a warning, and pass it on as a message."""
        logger.warning(text)
        if self._writes:
            self._on_progress(Notice(text))

    def progress(self, message: TrainingProgress | ScoringProgress) -> None:
        """Pass on how far the run is, unless the last such message was a moment ago."""
        if self._writes and self.clock.seconds - self._shown_at >= PROGRESS_SECONDS:
            self._shown_at = self.clock.seconds
            self._on_progress(message)

    # --- times --------------------------------------------------------------------------

    def start_training(self, tokens: int) -> None:
        """Begin to count the time of training; ``tokens`` were read before."""
        self._training = Lap(self.clock, tokens)

    def count_training(self, tokens: int) -> None:
        """Add the training since the last call; ``tokens`` are read so far."""
        assert self._training is not None
        seconds, trained = self._training.restart(tokens)
        self._timings = dataclasses.replace(
            self._timings,
            train_seconds=self._timings.train_seconds + seconds,
            tokens_trained=self._timings.tokens_trained + trained,
        )

    def write_timings(self) -> None:
        """Write ``timings.json`` as of now.

        Raises:
            OSError: it cannot be written.
        """
        if self._writes and not self._is_lost():
            timings = dataclasses.replace(
                self._timings,
                wall_seconds=self._earlier.wall_seconds + self.clock.seconds,
                evaluate_seconds=self._earlier.evaluate_seconds + self.clock.scoring_seconds,
            )
            write_json(self._files.timings, timings.to_json())


def _read_timings(files: RunDirectory) -> Timings:
    """Return the times of earlier starts; zeros where there are none, or damaged ones."""
    try:
        return Timings.from_json(json.loads(files.timings.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return Timings()


# --- TensorBoard ------------------------------------------------------------------------


class Board:
    """Writes rows as scalars; of a resumed run, rows after the step of its checkpoint are hidden.

    Args:
        folder: where the event files go.
        step: where the run goes on.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row: what was scored under the name of its split, the rest under ``train``."""
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a row of the learning curve, each with its path but for the step."""
    split = row.get("split")
    numbers = row["metrics"] if split is not None else {k: v for k, v in row.items() if k != "step"}
    yield from _scalars(numbers, split or "train")


def _scalars(values: dict[str, Any], path: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{path}/{name}")
        elif value is not None:
            yield f"{path}/{name}", float(value)
