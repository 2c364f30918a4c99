"""What a run saves of itself to go on from, and how it goes on from there."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moeut.config import ModelConfig
from runners.config.run_file import difference
from runners.config.schema import ConfigError
from runners.config.yaml_nodes import dump
from runners.process.checkpoint import Checkpoint, load_latest, save_checkpoint
from runners.process.ranks import Agreement
from runners.process.signals import Stopped
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
    _writing: list[Future[Path]] = field(default_factory=list, init=False)
    """The checkpoint that is being written beside the training, if one is."""

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

        A run of one process goes on with a copy being written beside it, by a thread; whoever needs
        the checkpoint to be there calls ``wait``. What fails in the thread is raised there, or by
        the next call.

        Args:
            loop: where the run is.
            best: the best weights so far, if the run selects among them.
            metrics_bytes: size of the learning curve, which a resumed run is cut to.

        Raises:
            DiskFull: no room; older checkpoints are untouched.
            Stopped: another process has taken the directory over.
        """
        self.wait()
        world = self.agreement.world
        self.agreement.confirm_lease()
        weights = {"model": parallel.full_weights(loop.model, keep=world.is_first)}
        if loop.average is not None:
            weights["ema"] = parallel.full_weights(loop.average.module, keep=world.is_first)
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
        write = functools.partial(
            save_checkpoint,
            self.folder,
            step=loop.position.step,
            weights=weights,
            files={"config.json": model_config.encode()},
            write_shards=write_shards if parallel.is_sharded(loop.model) else None,
            world=world,
            lease=self.agreement.lease,
        )
        if world.size > 1:  # the ranks wait for one another on the way
            write(state=state)
            return
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing.append(thread.submit(write, state=_copied(state)))
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Return when the checkpoint that is being written is there.

        Raises:
            DiskFull, Stopped: as ``save``, of the last one.
        """
        while self._writing:
            self._writing.pop().result()

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Leave no checkpoint half written behind, whatever happens in the context.

        An error of the context counts more than one of the last checkpoint, but a stop does not: it
        says that the state is saved.
        """
        try:
            yield
        except Stopped:
            self.wait()
            raise
        except BaseException:
            with contextlib.suppress(Exception):
                self.wait()
            raise
        self.wait()


def _copied(value: Any) -> Any:
    """Return plain data with copies, on the CPU, of the tensors that training goes on changing."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def resume(checkpoint: Checkpoint, loop: Loop) -> Weights | None:
    """Put a loop and its model where a checkpoint was made; return the best weights till then."""
    parallel.load_weights(loop.model, checkpoint.weights())
    if loop.average is not None:
        parallel.load_weights(loop.average.module, checkpoint.weights("ema"))
    loop.load_state_dict(checkpoint.state["loop"], shards=checkpoint.shards)
    has_best = (checkpoint.path / "best.safetensors").is_file()
    return checkpoint.weights("best") if has_best else None
