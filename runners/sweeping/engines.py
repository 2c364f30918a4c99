"""Which executor a sweep's command line asks for: ``--executor`` and the options of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runners.config.grid import Sweep
from runners.config.schema import ConfigError
from runners.sweeping.cluster_options import RayOptions, SlurmOptions, read_options
from runners.sweeping.executor import Executor, Job
from runners.sweeping.local import LocalExecutor


@dataclass(frozen=True)
class Engine:
    """Executes jobs, and knows of those that others have handed over before."""

    make: Callable[[Sequence[Job]], Executor]
    states: Callable[[Iterable[Path]], dict[Path, str]] = lambda directories: {}
    """Which runs are queued or running by this engine."""
    cancel: Callable[[Iterable[Path]], int] | None = None
    """Stops those, if they outlive the driver, and returns their number."""
    is_here: bool = False
    """Whether runs are executed on this machine, whose devices they then need."""

    @property
    def outlives_driver(self) -> bool:
        """Whether what was handed over goes on when the driver ends."""
        return self.cancel is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of executors to a sweep's command line."""
    parser.add_argument(
        "--executor", choices=EXECUTORS, default="local",
        help="where runs are executed: local, worker processes of this machine (the default); "
        "slurm, jobs of a Slurm cluster; ray, tasks of a Ray cluster (docs/clusters.md)",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="what jobs of Slurm ask for: partition, account, qos, constraint, time, memory, cpus, "
        "gpus, nodes, processes, parallel, save_seconds, setup, sbatch.NAME",
    )  # fmt: skip
    parser.add_argument(
        "--ray", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="of a Ray cluster: address, cpus, gpus, memory, retries",
    )  # fmt: skip
    parser.add_argument(
        "--workers-per-gpu", metavar="N", type=int, default=1,
        help="runs that share a GPU, or a job of Slurm (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--detach", action="store_true", help="submit to Slurm and leave; the same command looks"
    )
    parser.add_argument(
        "--cancel", action="store_true", help="cancel this sweep's jobs of Slurm; they save"
    )


def choose(options: argparse.Namespace, sweep: Sweep, directory: Path) -> Engine:
    """Return the engine that a command line asks for.

    Args:
        options: what ``add_arguments`` has added, and ``workers``.
        sweep: its file may hold options of clusters.
        directory: the sweep's.

    Raises:
        ConfigError: an option that is wrong, or that the chosen executor does not have.
    """
    if options.workers_per_gpu < 1:
        raise ConfigError(f"--workers-per-gpu {options.workers_per_gpu}: must be at least 1")
    for name in ("slurm", "ray"):
        if getattr(options, name) and options.executor != name:
            raise ConfigError(f"--{name}: only with --executor {name}")
    for name in ("detach", "cancel"):
        if getattr(options, name) and options.executor != "slurm":
            raise ConfigError(
                f"--{name}: only with --executor slurm, whose jobs outlive this command"
            )
    return EXECUTORS[options.executor](options, sweep, directory)


def _local(options: argparse.Namespace, sweep: Sweep, directory: Path) -> Engine:
    return Engine(
        make=lambda jobs: LocalExecutor.for_jobs(
            jobs, options.workers, per_gpu=options.workers_per_gpu
        ),
        is_here=True,
    )


def here(
    make: Callable[[Sequence[Job], int | None], Executor],
) -> Callable[[argparse.Namespace, Sweep, Path], Engine]:
    """Return what makes the engine of an executor on this machine that has no options.

    Args:
        make: gets the jobs and ``--workers``.
    """
    return lambda options, sweep, directory: Engine(
        make=lambda jobs: make(jobs, options.workers), is_here=True
    )


def _slurm(options: argparse.Namespace, sweep: Sweep, directory: Path) -> Engine:
    from runners.sweeping.slurm import SlurmExecutor

    section = sweep.root.value.get("cluster")
    executor = SlurmExecutor(
        read_options(SlurmOptions, options.slurm, sweep=section),
        sweep=directory,
        workers=options.workers,
        per_gpu=options.workers_per_gpu,
        detach=options.detach,
    )
    return Engine(make=lambda jobs: executor, states=executor.states, cancel=executor.cancel)


def _ray(options: argparse.Namespace, sweep: Sweep, directory: Path) -> Engine:
    from runners.sweeping.ray_cluster import RayExecutor

    section = sweep.root.value.get("cluster")
    chosen = read_options(RayOptions, options.ray, sweep=section)
    return Engine(
        make=lambda jobs: RayExecutor(
            chosen, workers=options.workers, per_gpu=options.workers_per_gpu
        )
    )


EXECUTORS: dict[str, Callable[[argparse.Namespace, Sweep, Path], Engine]] = {
    "local": _local,
    "slurm": _slurm,
    "ray": _ray,
}
"""Name → what makes the engine of a command line."""
