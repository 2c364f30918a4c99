"""What a job of Slurm does on each of its nodes; ``submitit`` calls ``execute`` there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from runners.sweeping.job_record import JobRecord
from runners.sweeping.remote import Children
from tasks.base.command_line import RESUMABLE

FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Ports of the ranks, by the number of the job."""


def execute(
    directories: Sequence[str], num_threads: int, ranks_per_node: int, requeue: bool
) -> NoReturn:
    """Execute runs and end the process with their status; after 75, ask for another turn.

    Args:
        directories: absolute paths of the runs that share the job.
        num_threads: threads of each process.
        ranks_per_node: processes of each run on every node; with more than one rank, torchrun
            starts them.
        requeue: whether to ask for another turn.
    """
    environment = os.environ
    is_first = environment.get("SLURM_NODEID", "0") == "0"
    if is_first:
        for directory in directories:
            record(directory, job_name(environment))
    num_nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    launcher = (
        torchrun(environment, num_nodes=num_nodes, ranks_per_node=ranks_per_node)
        if num_nodes * ranks_per_node > 1
        else []
    )
    children = Children(
        [Path(directory) for directory in directories],
        num_threads=num_threads,
        launcher=launcher,
        is_first=is_first,
    )
    status = children.run()
    if status == RESUMABLE and requeue and is_first and not children.is_cancelled:
        _requeue(environment["SLURM_JOB_ID"])
    sys.exit(status)


def record(directory: str, job: str) -> None:
    """Write down that a job has a run: the driver may have died before it could."""
    JobRecord(engine="slurm", job=job, directory=directory).write()


def job_name(environment: Mapping[str, str]) -> str:
    """Return the id of this job as Slurm's commands take and show it."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def torchrun(environment: Mapping[str, str], *, num_nodes: int, ranks_per_node: int) -> list[str]:
    """Return the command that starts this node's ranks of a run.

    The ranks meet at the first node, whose address Slurm has given to every task.
    """
    port = FIRST_PORT + int(environment["SLURM_JOB_ID"]) % NUM_PORTS
    return [
        sys.executable,
        "-m",
        "runners.sweeping.torchrun",
        f"--nnodes={num_nodes}",
        f"--node-rank={environment.get('SLURM_NODEID', '0')}",
        f"--nproc-per-node={ranks_per_node}",
        f"--master-addr={environment.get('SLURM_LAUNCH_NODE_IPADDR', '127.0.0.1')}",
        f"--master-port={port}",
    ]


def _requeue(job: str) -> None:
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"not requeued, the sweep's command submits it again: {error}", file=sys.stderr)
