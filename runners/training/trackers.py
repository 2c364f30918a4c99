"""Trackers of experiments beside TensorBoard: Weights & Biases, and trackio.

They get the rows of ``metrics.jsonl``. No run depends on one: where a tracker is not installed, is
not reached or fails, the run says so once and goes on without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from runners.config.schema import RunConfig
from runners.process.run_directory import RunRecord
from tasks.base.storage import write_json

SECONDS = 30
"""Longest wait for a tracker to begin."""

Warn = Callable[[str], None]


class Tracker(Protocol):
    """What gets the rows of a run."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add the scalars of a step."""

    def close(self) -> None:
        """Hand over what is left."""


class _Guarded:
    """A tracker whose first failure is said, and whose later rows are dropped."""

    def __init__(self, name: str, make: Callable[[], Tracker], warn: Warn) -> None:
        self._name, self._warn = name, warn
        self._tracker: Tracker | None = None
        with self._guard():
            self._tracker = make()

    def add(self, values: Mapping[str, float], step: int) -> None:
        with self._guard():
            if self._tracker is not None:
                self._tracker.add(values, step)

    def close(self) -> None:
        with self._guard():
            if self._tracker is not None:
                self._tracker.close()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            # The standard output of a worker is for its messages.
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except ImportError:
            self._stop(f"is not installed (pip install 'moeut-suite[{self._name}]')")
        except Exception as error:  # noqa: BLE001 - whatever ails it, the run goes on
            self._stop(f"fails: {type(error).__name__}: {error}")

    def _stop(self, reason: str) -> None:
        self._tracker = None
        self._warn(f"train.{self._name}: {self._name} {reason}; the run goes on without it")


class _Wandb:
    """A run of Weights & Biases, kept in the run's directory where nobody is logged in."""

    def __init__(self, folder: Path, config: RunConfig, record: RunRecord) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or record.sweep,
            group=record.sweep,
            name=_name(record),
            id=identity(folder),
            resume="allow",
            tags=[record.sweep[:64], record.variant[:64]],
            config=asdict(config) | {"run": asdict(record)},
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off", init_timeout=SECONDS),
        )

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, in TRACKIO_DIR or its own folder on this machine."""

    def __init__(self, folder: Path, config: RunConfig, record: RunRecord) -> None:
        import trackio

        self._run = trackio.init(
            project=record.sweep,
            group=record.variant,
            name=f"{_name(record)} {identity(folder)}",
            config=asdict(config) | {"run": asdict(record)},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, RunConfig, RunRecord], Tracker]] = {
    "wandb": _Wandb,
    "trackio": _Trackio,
}
"""Key under ``train`` → what begins, or goes on with, the tracker's run of a run directory."""


def open_trackers(folder: Path, config: RunConfig, record: RunRecord, warn: Warn) -> list[Tracker]:
    """Return the trackers that a config asks for.

    Args:
        folder: the run's directory.
        config: of the run.
        record: its place in a sweep: sweep and variant become group and tags.
        warn: gets a line about a tracker that fails.
    """
    return [
        _Guarded(name, lambda make=make: make(folder, config, record), warn)  # type: ignore[misc]
        for name, make in TRACKERS.items()
        if getattr(config.train, name)
    ]


def identity(folder: Path) -> str:
    """Return what trackers call the run of a directory: drawn once, the same after a resume."""
    path = folder / "tracking.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        found = uuid.uuid4().hex[:8]
        write_json(path, {"id": found})
        return found


def _name(record: RunRecord) -> str:
    return f"{record.variant} seed {record.seed} {record.hash}"
