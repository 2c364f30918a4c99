"""A run before it begins: its directory read and checked, and the process made ready for it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runners.config.schema import ConfigError, RunConfig
from runners.process import environment
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory, RunRecord
from runners.training.agreement import Agreement
from runners.training.experiment import Built, build
from tasks.base.storage import write_json


@dataclass(frozen=True)
class Prepared:
    """What a directory holds, checked, and the process made ready for it."""

    files: RunDirectory
    config: RunConfig
    record: RunRecord
    """Which run of which sweep it is."""
    built: Built
    """What the config describes."""
    data_hash: str
    device: torch.device
    agreement: Agreement
    notices: tuple[str, ...] = ()
    """What is to be said before the run begins."""

    @property
    def world(self) -> World:
        """This process's place among the ranks."""
        return self.agreement.world


def prepare(files: RunDirectory, agreement: Agreement) -> Prepared:
    """Read a directory, choose the device, build the task, and write the files beside the config.

    Raises:
        ConfigError: config and data are not those of the run's hash.
    """
    world = agreement.world
    config, record = files.read_config(), files.read_record()
    device = environment.choose_device(
        config.train, local_rank=world.local_rank if world.size > 1 else None
    )
    environment.prepare_process(config.train, device)
    built = build(config)
    data_hash = built.task.data_hash()
    found = config.hash(data_hash)
    if found != record.hash:
        raise ConfigError(
            f"{files.config}: its config and data have the hash {found}, but the run is "
            f"{record.hash}: the file or the data was changed; plan the run anew"
        )
    notices: list[str] = []
    if world.is_first:
        notices = _write_environment(files.path / "env.json", config, device, world)
        built.task.save_files(files.path)
    return Prepared(files, config, record, built, data_hash, device, agreement, tuple(notices))


def _write_environment(
    path: Path, config: RunConfig, device: torch.device, world: World
) -> list[str]:
    """Write ``env.json`` for this start, and return what is to be said of it.

    The file describes the last start; its list ``starts`` has time, host and code of each.
    """
    now = environment.describe_environment(config, device)
    starts = _earlier_starts(path)
    start = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    start |= {key: now[key] for key in ("host", "version", "git")}
    ranks = {"ranks": world.size} if world.size > 1 else {}
    write_json(path, {**now, **ranks, "starts": [*starts, start]})
    changed = environment.code_difference(starts[-1], start) if starts else None
    if changed is None:
        return []
    return [f"the code was changed since the run was last started: {changed}; see {path}"]


def _earlier_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts that a file lists; none where it is not there, or damaged."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        return [start for start in starts if isinstance(start, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
