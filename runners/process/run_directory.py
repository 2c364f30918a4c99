"""A run is a directory: which files it has, and what they say about its state.

::

    config.yaml       the resolved config
    run.json          its place in a sweep: variant, parameters, seed, hash
    .lease/           who works on it, or did last
    env.json          where and with what it runs, and from which code at every start
    metrics.jsonl     learning curve; the same however often it was resumed, apart from what a
                      language run's rows have under "speed"
    tensorboard/      the same for TensorBoard, if asked for
    tracking.json     what wandb and trackio call the run, if asked for
    checkpoints/      the last two
    predictions.jsonl every scored row
    timings.json      what differs from machine to machine
    log.txt           warnings and tracebacks of the process
    result.json       written last: the run is done
    error.json        the run has failed
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runners.config.run_file import from_yaml, to_yaml
from runners.config.schema import ConfigError, RunConfig
from tasks.base.storage import flush, json_text, write_atomically, write_json

logger = logging.getLogger(__name__)

Status = Literal["new", "resumable", "done", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Which run of which sweep a directory holds."""

    sweep: str
    variant: str
    seed: int
    hash: str
    """Identity: 8 hexadecimal digits over what decides the result, except the seed."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Grid point: dotted key → value."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def error(self) -> Path:
        return self.path / "error.json"

    @property
    def timings(self) -> Path:
        return self.path / "timings.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def status(self) -> Status:
        """Return what the files say: a result is final, and an error is until it is retried."""
        if self.result.is_file():
            return "done"
        if self.error.is_file():
            return "failed"
        return "resumable" if self.checkpoints.is_dir() else "new"

    def prepare(self, config: RunConfig, record: RunRecord) -> None:
        """Make the directory and write what the run is, where it does not say so already.

        Raises:
            OSError: the directory cannot be made, read or written to.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        _write_if_new(self.config, to_yaml(config))
        _write_if_new(self.record, json_text(dataclasses.asdict(record)))

    def read_config(self) -> RunConfig:
        """Return the config that the directory holds.

        Raises:
            ConfigError: there is none, or it has an error.
        """
        if not self.config.is_file():
            if not self.checkpoints.is_dir():
                raise ConfigError(f"{self.config}: no such file; the directory holds no run")
            raise ConfigError(
                f"{self.config}: no such file, though there are checkpoints. The command that "
                "planned the run (runners.sweep or runners.train) writes it again"
            )
        return from_yaml(self.config.read_text(encoding="utf-8"), str(self.config))

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    def read_record(self) -> RunRecord:
        """Return which run this is.

        Raises:
            ConfigError: the directory does not say it.
        """
        try:
            return RunRecord(**json.loads(self.record.read_text(encoding="utf-8")))
        except FileNotFoundError:
            reason = "no such file"
        except (ValueError, TypeError) as error:
            reason = f"damaged ({error})"
        if not self.config.is_file():
            raise ConfigError(f"{self.record}: {reason}; the directory holds no run")
        raise ConfigError(
            f"{self.record}: {reason}; it says which run this is. The command that planned the run "
            "(runners.sweep or runners.train) writes it again, and the run goes on"
        )

    def find_hash(self) -> str | None:
        """Return the run's hash, or None, with a warning, where ``run.json`` is lost."""
        try:
            return self.read_record().hash
        except ConfigError as error:
            logger.warning("%s; so it is not checked that the weights are this run's", error)
            return None

    def fail(self, message: str, *, step: int | None) -> None:
        """Write that the run has failed, and why.

        On a full disk the log alone says so, and the run counts as stopped.
        """
        try:
            write_json(self.error, {"status": "failed", "step": step, "message": message})
        except OSError as error:
            logger.error("%s: cannot be written: %s; %s", self.error, error, message)

    def failure(self) -> str:
        """Return why the run has failed."""
        try:
            return str(json.loads(self.error.read_text(encoding="utf-8"))["message"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return f"the reason could not be written, as on a full disk; see {self.log}"


def _write_if_new(path: Path, text: str) -> None:
    """Write a file unless its content is this text: reading spares a large sweep its fsyncs."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = None
    if found != text.encode():
        write_atomically(path, text)


def json_line(value: Any) -> bytes:
    """Return a value as one line of a file of JSON lines."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


class MetricsLog:
    """The learning curve ``metrics.jsonl``, to which a run appends rows.

    Args:
        path: the file.
        size: bytes that stay. Rows behind them were written after the checkpoint that the run
            resumes from, which writes them again.
        warn: gets a line if the file is shorter than that, as one that was deleted. The weights do
            not depend on it: what is there of it stays, but for half a row at its end.
    """

    def __init__(
        self, path: Path, *, size: int = 0, warn: Callable[[str], None] = logger.warning
    ) -> None:
        path.touch()
        found = path.stat().st_size
        if found < size:
            warn(
                f"{path}: {size - found:,} of {size:,} bytes are lost, and with them rows of the "
                "learning curve; the run goes on from its weights, which do not depend on them"
            )
            size = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, size)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, row: dict[str, Any]) -> None:
        """Write one row."""
        self._file.write(json_line(row))

    def flush(self) -> int:
        """Bring all rows to the disk and return the size of the file in bytes."""
        flush(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
