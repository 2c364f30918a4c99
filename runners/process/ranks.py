"""The processes of a run: their ranks, what they tell one another, and how none hangs.

Under ``torchrun`` every process (*rank*) trains on a share of each batch. Gradients travel over
the device's own backend (NCCL, or gloo on a CPU). Everything else — counts, the wish to stop, the
outcome of what rank 0 alone does — goes over a second group on gloo, so that a GPU is never waited
for, and without a time limit, since rank 0 may pack data or score for hours.

A rank that fails leaves its reason in the store before it ends. The connections that it closes
raise in the others, which find the reason there; where there is none, the rank was killed or its
machine is gone. A rank that hangs in a GPU collective, which notices nothing, is ended by a watch.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from runners.config.schema import RunConfig
from tasks.base.command_line import FAILED

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment that torchrun gives each of its processes."""

NO_LIMIT = datetime.timedelta(days=30)
WATCH_SECONDS = 1.0
GRACE_SECONDS = 20.0
"""Time in which a rank must have noticed by itself that another one has failed."""


@dataclass(frozen=True)
class World:
    """A rank's place among the ranks of a run: by default the only one, which talks to nobody."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of the process on its machine, and of its GPU."""
    control: Any = None
    """The group of everything but gradients."""
    store: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes: logs, checkpoints, results, the terminal."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor of any shape over the ranks, in place, on its device, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_counts(self, *counts: int) -> list[int]:
        """Add up whole numbers over the ranks."""
        if self.size == 1:
            return list(counts)
        tensor = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def share(self, value: Any) -> Any:
        """Return what rank 0 gave; the others wait for it."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def wait(self) -> None:
        """Return once all ranks have come here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def pieces(self, rows: np.ndarray, parts: int) -> list[np.ndarray]:
        """Return this rank's piece of each of the parts that a batch is split into.

        All ranks get as many pieces, some of them empty where there are too few rows.

        Args:
            rows: row numbers of the whole batch, (rows,).
            parts: batches to accumulate.

        Returns:
            Up to ``parts`` arrays of row numbers, (rows of the piece,).
        """
        parts = min(parts, -(-len(rows) // self.size))
        pieces = np.array_split(rows, parts * self.size)
        return pieces[self.rank :: self.size]

    # --- failures -----------------------------------------------------------------------

    def report(self, message: str) -> None:
        """Leave the reason why this rank ends, for the others to find."""
        if self.store is not None:
            try:
                self.store.set(_failure_key(), message)
            except (RuntimeError, ConnectionError):
                sys.stderr.write("the store of the ranks has gone\n")

    def reported(self) -> str | None:
        """Return the reason that another rank has left, or None."""
        try:
            if self.store is None or not self.store.check([_failure_key()]):
                return None
            return self.store.get(_failure_key()).decode()
        except (RuntimeError, ConnectionError):
            return None


def _failure_key() -> str:
    # A torchrun that starts its processes again keeps the store.
    return f"moeut/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def is_lost(error: BaseException) -> bool:
    """Return whether an error came from the connection to another rank."""
    text = str(error)
    return isinstance(error, dist.DistError | ConnectionError) or (
        isinstance(error, RuntimeError)
        and ("gloo" in text or "Connection closed" in text or "Connection reset" in text)
    )


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is one of several that torchrun has started."""
    return all(name in environment for name in VARIABLES) and int(environment["WORLD_SIZE"]) > 1


def join() -> World:
    """Join the other ranks, if torchrun has started several, and return this one's place."""
    if not is_launched():
        return World()
    local_rank = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    world = World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=local_rank,
        control=dist.new_group(backend="gloo", timeout=NO_LIMIT),
        store=_connect(),
    )
    threading.Thread(target=_watch, args=(_connect(),), daemon=True).start()
    return world


def leave(world: World) -> None:
    """Wait for the other ranks at the end, so that none is stopped while rank 0 still writes."""
    if world.size > 1 and world.reported() is None:
        try:
            world.wait()
            dist.destroy_process_group()
        except RuntimeError as error:
            if not is_lost(error):
                raise


@contextlib.contextmanager
def silent_but_first() -> Iterator[None]:
    """Let rank 0 alone print, so that what every rank has to say is said once."""
    if not is_launched() or int(os.environ["RANK"]) == 0:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def run_together(work: Callable[[World], int]) -> int:
    """Do a command's work on every rank, from joining the others to leaving them."""
    first = not is_launched() or int(os.environ["RANK"]) == 0
    level = logging.INFO if first else logging.WARNING  # what holds for all ranks is said once
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level, stream=sys.stderr)
    world = join()
    status = work(world)
    leave(world)
    return status


def _connect() -> Any:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False)


def _watch(store: Any) -> None:
    """End the process some time after another rank has reported a failure."""
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            failed = store.check([_failure_key()])
        except (RuntimeError, ConnectionError):
            failed = True  # rank 0, or torchrun itself, has gone
        if failed:
            time.sleep(GRACE_SECONDS)
            os._exit(FAILED)


def rank_seed(seed: int, rank: int, step: int = 0) -> int:
    """Return the seed of a rank's own random numbers (dropout), other than those of rank 0."""
    return int(np.random.SeedSequence([seed, 2, rank, step]).generate_state(1)[0])


def check_batch(config: RunConfig, size: int) -> None:
    """Check that the ranks' parts of a batch are equal.

    Batches of ``tokens_per_batch`` have no fixed number of rows and are split as evenly as they
    can be.

    Raises:
        ConfigError: the batch does not divide.
    """
    train = config.train
    if size == 1 or train.tokens_per_batch is not None:
        return
    if train.batch_size % (size * train.accumulate):
        parts = f" in accumulate={train.accumulate} parts" if train.accumulate > 1 else ""
        raise config.error(
            "train.batch_size",
            train.batch_size,
            f"must be divisible by {size * train.accumulate}, for {size} ranks{parts}",
        )
