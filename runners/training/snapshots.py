"""What a run saves of itself to go on from, and how it goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from runners.config.run_file import difference
from runners.config.schema import ConfigError
from runners.config.yaml_nodes import dump
from runners.process.checkpoint import Checkpoint, load_latest, save_checkpoint
from runners.training import parallel
from runners.training.loop import Loop
from runners.training.prepared import Prepared

Weights = dict[str, torch.Tensor]


def find_snapshot(prepared: Prepared, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the last whole checkpoint of a run; None where it has not saved any.

    Args:
        prepared: the run.
        warn: gets a line about each damaged checkpoint.

    Raises:
        ConfigError: it was made under a config with another identity.
        ValueError: every checkpoint is damaged, or the ranks do not see the same ones.
    """
    folder = prepared.files.checkpoints
    checkpoint = load_latest(folder, warn=warn)
    if len(set(prepared.world.gather(None if checkpoint is None else checkpoint.step))) > 1:
        raise ValueError(
            f"{folder}: the ranks find different checkpoints there; runs have to be on a disk that "
            "all of them share"
        )
    if checkpoint is not None and checkpoint.state["hash"] != prepared.record.hash:
        changed = difference(
            dump(checkpoint.state["identity"]),
            dump(prepared.config.identity(prepared.data_hash)),
        )
        raise ConfigError(
            f"{checkpoint.path}: was made under another config; resuming would mix the two: "
            + changed
        )
    return checkpoint


def resume(checkpoint: Checkpoint, loop: Loop) -> Weights | None:
    """Put a loop and its model where a checkpoint was made; return the best weights till then."""
    parallel.load_weights(loop.model, checkpoint.weights())
    loop.load_state_dict(checkpoint.state["loop"], shards=checkpoint.shards)
    has_best = (checkpoint.path / "best.safetensors").is_file()
    return checkpoint.weights("best") if has_best else None


def save_snapshot(
    prepared: Prepared, loop: Loop, *, best: Weights | None, metrics_bytes: int | None
) -> None:
    """Save what a run needs to go on bitwise as if it had not stopped; every rank has to call it.

    Args:
        prepared: the run.
        loop: where it is.
        best: the best weights so far, if the run selects among them.
        metrics_bytes: size of the learning curve, which a resumed run is cut to.

    Raises:
        DiskFull: no room; older checkpoints are untouched.
        Stopped: another process has taken the directory over.
    """
    world, agreement = prepared.world, prepared.agreement
    agreement.confirm_lease()
    weights = {"model": parallel.full_weights(loop.model, keep=world.is_first)}
    if best is not None:
        weights["best"] = best
    state = {
        "loop": loop.state_dict(),
        "metrics_bytes": metrics_bytes,
        "hash": prepared.record.hash,
        "identity": prepared.config.identity(prepared.data_hash),
    }

    def write_shards(folder: Path) -> None:
        from runners.training.sharding import save_shards

        save_shards(folder, loop.model, loop.optimizer, world)

    model_config = json.dumps(prepared.built.model_config.to_dict(), indent=1) + "\n"
    save_checkpoint(
        prepared.files.checkpoints,
        step=loop.position.step,
        state=state,
        weights=weights,
        files={"config.json": model_config.encode()},
        write_shards=write_shards if parallel.is_sharded(loop.model) else None,
        world=world,
        lease=agreement.lease,
    )
