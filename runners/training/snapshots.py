"""What a run saves of itself to go on from, and how it goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moeut.config import ModelConfig
from runners.config.run_file import difference
from runners.config.schema import ConfigError
from runners.config.yaml_nodes import dump
from runners.process.checkpoint import Checkpoint, load_latest, save_checkpoint
from runners.process.ranks import Agreement
from runners.training import parallel
from runners.training.loop import Loop

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """The checkpoints of a run, and what each of them says to be this run's."""

    folder: Path
    run_hash: str
    identity: dict[str, Any]
    """What the hash is over, which shows how another run's config differs."""
    model_config: ModelConfig
    agreement: Agreement

    def find(self, *, warn: Callable[[str], None]) -> Checkpoint | None:
        """Return the last whole checkpoint; None where none is saved yet.

        Args:
            warn: gets a line about each damaged checkpoint.

        Raises:
            ConfigError: it was made under a config with another identity.
            ValueError: every checkpoint is damaged, or the ranks do not see the same ones.
        """
        found = load_latest(self.folder, warn=warn)
        if len(set(self.agreement.world.gather(None if found is None else found.step))) > 1:
            raise ValueError(
                f"{self.folder}: the ranks find different checkpoints there; runs have to be on a "
                "disk that all of them share"
            )
        if found is not None and found.state["hash"] != self.run_hash:
            changed = difference(dump(found.state["identity"]), dump(self.identity))
            raise ConfigError(
                f"{found.path}: was made under another config; resuming would mix the two: "
                + changed
            )
        return found

    def save(self, loop: Loop, *, best: Weights | None, metrics_bytes: int | None) -> None:
        """Save what it takes to go on bitwise as if nothing had stopped; every rank has to call it.

        Args:
            loop: where the run is.
            best: the best weights so far, if the run selects among them.
            metrics_bytes: size of the learning curve, which a resumed run is cut to.

        Raises:
            DiskFull: no room; older checkpoints are untouched.
            Stopped: another process has taken the directory over.
        """
        world = self.agreement.world
        self.agreement.confirm_lease()
        weights = {"model": parallel.full_weights(loop.model, keep=world.is_first)}
        if best is not None:
            weights["best"] = best
        state = {
            "loop": loop.state_dict(),
            "metrics_bytes": metrics_bytes,
            "hash": self.run_hash,
            "identity": self.identity,
        }

        def write_shards(folder: Path) -> None:
            from runners.training.sharding import save_shards

            save_shards(folder, loop.model, loop.optimizer, world)

        model_config = json.dumps(self.model_config.to_dict(), indent=1) + "\n"
        save_checkpoint(
            self.folder,
            step=loop.position.step,
            state=state,
            weights=weights,
            files={"config.json": model_config.encode()},
            write_shards=write_shards if parallel.is_sharded(loop.model) else None,
            world=world,
            lease=self.agreement.lease,
        )


def resume(checkpoint: Checkpoint, loop: Loop) -> Weights | None:
    """Put a loop and its model where a checkpoint was made; return the best weights till then."""
    parallel.load_weights(loop.model, checkpoint.weights())
    loop.load_state_dict(checkpoint.state["loop"], shards=checkpoint.shards)
    has_best = (checkpoint.path / "best.safetensors").is_file()
    return checkpoint.weights("best") if has_best else None
