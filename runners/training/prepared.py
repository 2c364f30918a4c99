"""A run before it begins: its directory read and checked, and the process made ready for it."""

from __future__ import annotations

from dataclasses import dataclass

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
    if world.is_first:
        write_json(
            files.path / "env.json",
            environment.describe_environment(config, device)
            | ({"ranks": world.size} if world.size > 1 else {}),
        )
        built.task.save_files(files.path)
    return Prepared(files, config, record, built, data_hash, device, agreement)
