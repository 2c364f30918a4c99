"""The executor of a Slurm cluster: arrays of jobs, through ``submitit``.

The driver submits what nobody has, and watches; it may end at any time, and the jobs go on. What it
knows of them it reads again each time: the ids beside the runs, ``squeue``, the runs' own files.
"""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from runners.process.messages import Notice
from runners.process.signals import Stop
from runners.sweeping import slurm_job
from runners.sweeping.cluster_options import SlurmOptions
from runners.sweeping.executor import ClusterUnavailable, Job, OnMessage
from runners.sweeping.job_record import JobRecord, read_job
from runners.sweeping.watching import Watch

logger = logging.getLogger(__name__)

FOLDER = "jobs"
"""Folder of a sweep with the scripts and outputs of its jobs."""
POLL_SECONDS = 5.0
QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
"""States of Slurm in which a job waits; in any other that squeue shows, it has a node."""
IDS_A_COMMAND = 500
BLOCKED = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Starts Python with SIGUSR2 held back until ``Children`` listens: one that comes in the first
second of a job, as with a limit of a minute, would end it instead."""
State = Literal["queued", "running"]


class SlurmExecutor:
    """Execute runs as jobs of Slurm.

    Args:
        options: what each job asks for.
        sweep: the sweep's directory, on a file system that all nodes share.
        workers: jobs at a time, over ``options.parallel``.
        per_gpu: runs that share a job, side by side.
        detach: whether ``run`` returns as soon as all is submitted.
    """

    def __init__(
        self,
        options: SlurmOptions,
        *,
        sweep: Path,
        workers: int | None = None,
        per_gpu: int = 1,
        detach: bool = False,
    ) -> None:
        self.options = options
        self._sweep = sweep
        self._parallel = workers or options.parallel
        self._per_gpu = per_gpu
        self._detach = detach

    @property
    def num_workers(self) -> int:
        """Runs at a time, as far as the options limit them."""
        return (self._parallel or IDS_A_COMMAND) * self._per_gpu

    def states(self, directories: Iterable[Path]) -> dict[Path, str]:
        """Return which of the runs are queued or running, by their directory.

        Raises:
            ClusterUnavailable: Slurm does not answer, so that nothing may be submitted.
        """
        jobs = {directory: read_job(directory, "slurm") for directory in directories}
        if not any(jobs.values()):
            return {}
        queue = _queue()
        return {directory: queue[job] for directory, job in jobs.items() if job and job in queue}

    def cancel(self, directories: Iterable[Path]) -> int:
        """Cancel the jobs of the runs that are queued or running, and return their number.

        Raises:
            ClusterUnavailable: Slurm does not answer.
        """
        wanted = self.states(directories)
        jobs = sorted({read_job(directory, "slurm") or "" for directory in wanted})
        for start in range(0, len(jobs), IDS_A_COMMAND):
            _command("scancel", *jobs[start : start + IDS_A_COMMAND])
        return len(wanted)

    def run(self, jobs: Sequence[Job], *, stop: Stop, on_message: OnMessage) -> None:
        """Submit the jobs that are not there yet and watch all of them, or leave.

        A stop ends the watching alone: the jobs go on, and the same command watches them again.

        Raises:
            ClusterUnavailable: Slurm does not answer or does not take the jobs.
        """
        known = self.states([job.directory for job in jobs])
        kinds: dict[tuple[int, bool], list[Job]] = {}
        for job in jobs:
            if job.directory not in known:
                kinds.setdefault((job.num_threads, job.uses_gpu), []).append(job)
        for group in kinds.values():
            for part in _parts(group, _largest_array() * self._per_gpu):
                text = f"{len(part)} runs submitted as job {self._submit(part)}"
                on_message(self._sweep, Notice(text))
        if not self._detach:
            self._watch([job.directory for job in jobs], stop, Watch(jobs, on_message))

    def _submit(self, jobs: Sequence[Job]) -> str:
        """Submit jobs of one kind as an array, and return its id."""
        submitit = _submitit()
        directories = [str(job.directory.resolve()) for job in jobs]
        packs = [list(pack) for pack in _parts(directories, self._per_gpu)]
        options = self.options
        count = len(packs)
        arguments = (
            packs,
            [jobs[0].num_threads] * count,
            [self._ranks(jobs[0])] * count,
            [options.requeue] * count,
        )
        try:
            executor = submitit.SlurmExecutor(self._sweep.resolve() / FOLDER, python=_python())
            executor.update_parameters(**self._parameters(jobs[0]))
            submitted = executor.map_array(slurm_job.execute, *arguments)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise ClusterUnavailable(f"sbatch: {' '.join(str(error).split())}") from error
        for pack, job in zip(packs, submitted, strict=True):
            for directory in pack:
                JobRecord(engine="slurm", job=job.job_id, directory=directory).write()
        return str(submitted[0].job_id).partition("_")[0]

    def _ranks(self, job: Job) -> int:
        return self.options.processes or max(1, self._gpus(job))

    def _gpus(self, job: Job) -> int:
        return int(job.uses_gpu) if self.options.gpus is None else self.options.gpus

    def _parameters(self, job: Job) -> dict[str, Any]:
        """Return what submitit makes the head of the script of."""
        options = self.options
        cpus = options.cpus or job.num_threads * self._ranks(job) * self._per_gpu
        named = ("partition", "account", "qos", "constraint", "nodelist", "exclude")
        parameters: dict[str, Any] = {
            name: value for name in named if (value := getattr(options, name)) is not None
        }
        further = {"time": options.time, **({"requeue": True} if options.requeue else {})}
        if options.memory is not None:
            further["mem"] = options.memory
        if gpus := self._gpus(job):
            parameters["gpus_per_node"] = gpus
        if self._parallel:
            parameters["array_parallelism"] = self._parallel
        return parameters | {
            "job_name": f"moeut-{self._sweep.name}",
            "nodes": options.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "signal_delay_s": options.save_seconds,
            "setup": options.setup or None,
            # Since Slurm 22.05 a step does not inherit the cores of its job's tasks.
            "srun_args": [f"--cpus-per-task={cpus}"],
            "additional_parameters": further | options.sbatch,
        }

    def _watch(self, directories: Sequence[Path], stop: Stop, watch: Watch) -> None:
        left = {directory: read_job(directory, "slurm") or "" for directory in directories}
        has_failed = False
        while left and not stop.requested:
            try:
                queue = _queue()
                has_failed = False
            except ClusterUnavailable as error:
                if not has_failed:
                    logger.warning("%s; the jobs go on, and it is asked again", error)
                has_failed = True
                _pause(POLL_SECONDS, stop)
                continue
            for directory, job in list(left.items()):
                state = queue.get(job)
                if state == "running":
                    watch.is_running(directory)
                elif state == "queued":
                    watch.is_back(directory)
                else:
                    del left[directory]
                    words, status = _how_ended(job)
                    watch.has_ended(directory, reason=words, exit_status=status)
            if left:
                _pause(POLL_SECONDS, stop)


# --- the commands of Slurm --------------------------------------------------------------


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ClusterUnavailable(
            "--executor slurm needs the package submitit: pip install 'moeut-suite[slurm]'"
        ) from error
    return submitit


def _command(*words: str) -> str:
    """Return what a command prints.

    Raises:
        ClusterUnavailable: it is not there, does not answer, or fails.
    """
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterUnavailable(
            f"{words[0]}: no such command; --executor slurm runs where Slurm's commands are, "
            "as on a login node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterUnavailable(f"{words[0]}: no answer within two minutes") from error
    if done.returncode:
        text = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise ClusterUnavailable(f"{words[0]}: {text}")
    return done.stdout


def _queue() -> dict[str, State]:
    """Return the state of every job of this user that Slurm has not finished, by its id."""
    lines = _command("squeue", "--noheader", "--array", "--me", "--format=%i|%T").splitlines()
    jobs: dict[str, State] = {}
    for line in lines:
        job, _, state = line.strip().partition("|")
        if state not in ENDED:
            jobs[job] = "queued" if state in QUEUED else "running"
    return jobs


ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


def _how_ended(job: str) -> tuple[str, int | None]:
    """Return what Slurm says of a job that has left the queue, and its exit status if known."""
    state, status = "has ended", None
    try:
        text = _command("scontrol", "show", "job", "--oneliner", job)
    except ClusterUnavailable:  # Slurm forgets a job minutes after its end
        text = ""
    first = text.partition("\n")[0]
    found = dict(re.findall(r"\b(JobState|ExitCode)=(\S+)", first))
    if "JobState" in found:
        state = f"ended as {found['JobState']}"
        status = int(found.get("ExitCode", "0:0").partition(":")[0])
    return f"job {job} {state}; the same command submits the run again", status


def _largest_array() -> int:
    """Return the most jobs that an array of this cluster has."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _command("scontrol", "show", "config"), re.M)
    return max(1, int(found[1]) - 1) if found else 1000


def _python() -> str:
    python = shlex.quote(sys.executable)
    return f"{python} -I -S -c {shlex.quote(BLOCKED)} {python}"


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _pause(seconds: float, stop: Stop) -> None:
    end = time.monotonic() + seconds
    while not stop.requested and time.monotonic() < end:
        time.sleep(min(0.2, seconds))
