"""The executor of a Ray cluster: a task for each run, which Ray places on its nodes.

Runs are processes of their own on the nodes, as everywhere. They end with the driver, since Ray
ends its tasks then; the same command goes on. What is said of them comes from their directories.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners.process.messages import Notice
from runners.process.signals import Stop
from runners.sweeping.cluster_options import RayOptions
from runners.sweeping.executor import ClusterUnavailable, Job, OnMessage
from runners.sweeping.watching import Watch
from tasks.base.command_line import RESUMABLE

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
STOP_SECONDS = 120.0
"""Time in which runs must have saved after a stop."""
CONNECT_SECONDS = 10.0
GIB = 1 << 30


class RayExecutor:
    """Execute runs as tasks of Ray.

    Args:
        options: where the cluster is, and what a run takes of it.
        workers: runs at a time; default: as many as the cluster has room for.
        per_gpu: runs that share a GPU.
    """

    def __init__(
        self, options: RayOptions, *, workers: int | None = None, per_gpu: int = 1
    ) -> None:
        self.options = options
        self._workers = workers
        self._per_gpu = per_gpu

    @property
    def num_workers(self) -> int:
        """Runs at a time, as far as the command line limits them."""
        return self._workers or os.cpu_count() or 1

    def run(self, jobs: Sequence[Job], *, stop: Stop, on_message: OnMessage) -> None:
        """Execute every job; a run whose node dies is taken up by another node.

        Raises:
            ClusterUnavailable: there is no Ray, or no cluster.
        """
        ray = _connect(self.options.address)
        try:
            _Tasks(ray, self, jobs, Watch(jobs, on_message)).run(stop, on_message)
        finally:
            ray.shutdown()

    def resources(self, job: Job) -> dict[str, Any]:
        """Return what a run takes of a node, as Ray's options."""
        options = self.options
        share = 1 / self._per_gpu if job.uses_gpu else 0
        wanted: dict[str, Any] = {
            "num_cpus": options.cpus or job.num_threads,
            "num_gpus": share if options.gpus is None else options.gpus,
            "max_retries": options.retries,
        }
        if options.memory is not None:
            wanted["memory"] = int(options.memory * GIB)
        return wanted


class _Tasks:
    """The tasks of one sweep."""

    def __init__(self, ray: Any, executor: RayExecutor, jobs: Sequence[Job], watch: Watch) -> None:
        self._ray = ray
        self._executor = executor
        self._waiting = deque(jobs)
        self._limit = executor._workers or len(jobs)
        self._watch = watch
        self._tasks: dict[Any, Job] = {}

    def run(self, stop: Stop, on_message: OnMessage) -> None:
        execute = self._ray.remote(execute_run)
        while self._waiting or self._tasks:
            if stop.requested:
                self._stop()
                return
            while self._waiting and len(self._tasks) < self._limit:
                job = self._waiting.popleft()
                options = self._executor.resources(job)
                task = execute.options(name=str(job.directory), **options).remote(
                    str(job.directory.resolve()), job.num_threads
                )
                self._tasks[task] = job
            self._look(POLL_SECONDS, on_message)

    def _look(self, seconds: float, on_message: OnMessage) -> None:
        """Take up what has ended, and show how far the others are."""
        ended, others = self._ray.wait(
            list(self._tasks), num_returns=len(self._tasks), timeout=seconds
        )
        for task in ended:
            self._end(task, on_message)
        for task in others:
            directory = self._tasks[task].directory
            if (directory / ".lease").is_dir():  # a worker has taken it up
                self._watch.is_running(directory)

    def _end(self, task: Any, on_message: OnMessage) -> None:
        job = self._tasks.pop(task)
        status, reason = RESUMABLE, "stopped; the same command continues it"
        try:
            status = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            reason = (
                f"{type(error).__name__}: its node or worker has died; the same command goes on"
            )
            on_message(job.directory, Notice(str(error).strip().splitlines()[0]))
        self._watch.has_ended(job.directory, reason=reason, exit_status=status)

    def _stop(self) -> None:
        """Have what is under way save, and wait for it."""
        for task in self._tasks:
            self._ray.cancel(task)
        self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=STOP_SECONDS)
        for job in self._tasks.values():
            if (job.directory / ".lease").is_dir():
                self._watch.has_ended(job.directory, reason="stopped and saved")


def execute_run(directory: str, num_threads: int) -> int:
    """Execute a run on a node of Ray and return its exit status."""
    from runners.sweeping.remote import Children

    return Children([Path(directory)], num_threads=num_threads).run()


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ClusterUnavailable(
            "--executor ray needs the package ray: pip install 'moeut-suite[ray]'"
        ) from error
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, path))}}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_listens(address)
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        text = " ".join(str(error).split()).partition(". ")[0]
        raise ClusterUnavailable(
            f"--ray address={address}: {text}; start one by: ray start --head"
        ) from error
    signal.signal(signal.SIGTERM, handler)  # Ray's own would end the driver without a save
    return ray


def _check_listens(address: str) -> None:
    """Check that something listens at an address, ``host:port``: Ray itself asks for minutes.

    Raises:
        OSError: nothing does.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "//" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
