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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from runners.config.schema import RunConfig
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stop, Stopped
from runners.process.start import is_launched
from tasks.base.command_line import FAILED
from tasks.base.lease import Lease, Locked, Lost

logger = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""Time that a run waits for a process that works on its directory and may be just ending."""

NO_LIMIT = datetime.timedelta(days=30)
WATCH_SECONDS = 1.0
GRACE_SECONDS = 20.0
"""Time in which a rank must have noticed by itself that another one has failed."""

Result = TypeVar("Result")


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


# --- what the ranks decide together -----------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """The stop of this process, the lease of the run, and the ranks that have to agree on both."""

    world: World
    stop: Stop
    lease: Lease | None = None
    """Held by rank 0."""

    @property
    def is_asked(self) -> bool:
        """Whether this rank was asked to stop, or has lost the lease."""
        return self.stop.requested or not (self.lease is None or self.lease.is_held())

    def stop_requested(self) -> bool:
        """Return whether any rank was asked to stop; every rank has to call it."""
        if self.world.size == 1:
            return self.is_asked
        status = self.world.largest(self.stop.exit_status if self.is_asked else 0)
        if status:
            self.stop.adopt(status)
        # Not is_asked: a signal may have come to this rank alone since the exchange, and the
        # others would go on without it.
        return status > 0

    def confirm_lease(self) -> None:
        """Check that the run's directory is still this run's to write to; every rank has to call.

        Raises:
            Stopped: on every rank but a single one, if another process has taken it over.
            Lost: on a single one.
        """
        self.on_first(lambda: None if self.lease is None else self.lease.confirm())

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do ``work`` while the others wait; return its value on every rank.

        The value is pickled and sent, so it should be small.

        Raises:
            Stopped: on every rank, if rank 0 was stopped in the middle of it.
        """
        if self.world.size == 1:
            return work()
        outcome: tuple[str, Any, int] | None = None
        if self.world.is_first:
            try:
                outcome = "done", work(), 0
            except (Stopped, Lost) as stopped:
                outcome = "stopped", str(stopped), self.stop.exit_status
        kind, value, status = self.world.share(outcome)
        if kind == "stopped":
            self.stop.adopt(status)
            raise Stopped(value)
        return value

    def record_failure(self, files: RunDirectory, error: Exception, *, step: int | None) -> None:
        """Write down why the run has failed, on rank 0.

        What a rank raises because the connection to another one broke is not the reason: that is
        what the other one has left in the store, if it could.

        Raises:
            Stopped: another rank has just gone; the run goes on from its last checkpoint.
            Lost: another process has taken the directory over: then that is why.
        """
        if self.lease is not None:
            self.lease.confirm()
        message = str(error) or repr(error)
        if self.world.size > 1:
            reported = self.world.reported()
            if is_lost(error) and reported is None:
                raise Stopped(
                    "lost another rank, which was killed or whose machine is gone; the run "
                    "continues from its last checkpoint"
                ) from error
            if reported is not None:
                message = reported
            else:
                logger.exception("rank %d has failed", self.world.rank)
                self.world.report(message)
        else:
            logger.exception("the run has failed")
        if self.world.is_first:
            files.fail(message, step=step)


@contextlib.contextmanager
def hold(
    directory: Path, stop: Stop, world: World, *, say: Callable[[str], None]
) -> Iterator[Agreement]:
    """Hold the lease of a directory on rank 0 while the context lasts, and give the agreement.

    Args:
        directory: of the run; on a disk that all ranks share.
        stop: asked while waiting for another process.
        world: this process's place among the ranks.
        say: gets a sentence if there is somebody to wait for, or was to take over from.

    Raises:
        Locked: on every rank, if another process works on the directory.
        OSError: on every rank, if rank 0 cannot write to it.
        Stopped: on every rank, if a stop was asked for while waiting; on rank 0, at the end, if
            another process has taken the directory over meanwhile.
    """

    def check() -> None:
        if stop.requested:
            raise Stopped(f"stopped while waiting for another process to leave {directory}")

    with contextlib.ExitStack() as stack:
        lease: Lease | None = None
        problem: Locked | Stopped | OSError | None = None
        if world.is_first:
            lease = Lease(directory, wait=WAIT_SECONDS, say=say, check=check)
            try:
                stack.enter_context(lease)
            except (Locked, Stopped, OSError) as error:
                problem = error
        # The others hear of it as what it is, or they would wait for rank 0 for ever.
        told = world.share(None if problem is None else (type(problem), str(problem)))
        if told is not None:
            kind, text = told
            raise problem or kind(text)
        try:
            yield Agreement(world, stop, lease)
        except Lost as lost:
            raise Stopped(str(lost)) from lost


def check_together(world: World, check: Callable[[], Result]) -> Result | None:
    """Return what ``check`` does, or None on every rank if it raised ValueError on any of them.

    Rank 0 prints the error, the first one of several.
    """
    value, problem = None, None
    try:
        value = check()
    except ValueError as error:
        problem = str(error)
    problems = [text for text in world.gather(problem) if text is not None]
    if problems and world.is_first:
        print(problems[0], file=sys.stderr)
    return None if problems else value
