"""A sweep is a reconcile: what its directories lack is executed, and nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from runners.config.grid import PlannedRun
from runners.config.labels import compact, short_keys
from runners.process.environment import choose_device
from runners.process.messages import Ended, Message
from runners.process.run_directory import RunDirectory, RunRecord
from runners.process.signals import Stop
from runners.sweeping.executor import Executor, Job
from runners.sweeping.progress import Display
from tasks.base.command_line import DONE, FAILED, RESUMABLE
from tasks.base.console import say


def job_of(run: PlannedRun) -> Job:
    """Return what it takes to execute a run."""
    train = run.config.train
    return Job(run.directory, train.num_threads, uses_gpu=choose_device(train).type == "cuda")


def run_labels(planned: Sequence[PlannedRun]) -> dict[Path, str]:
    """Return the name of each run in progress lines, by its directory: variant, values, seed."""
    short = short_keys(key for run in planned for key in run.parameters)
    labels = {}
    for run in planned:
        values = [f"{short[key]}={compact(value)}" for key, value in run.parameters.items()]
        labels[run.directory] = " ".join([run.variant, *values, f"seed {run.seed}"])
    return labels


def reconcile(
    planned: Sequence[PlannedRun],
    *,
    name: str,
    retry_failed: bool,
    make_executor: Callable[[Sequence[Job]], Executor],
    stop: Stop,
    console: Console,
) -> Counter[str]:
    """Execute what is not done yet and return how many runs have which status.

    Args:
        planned: the runs; the caller holds the lease of their sweep's directory.
        name: of the sweep.
        retry_failed: whether to try again what has failed.
        make_executor: gets the jobs that there are, if there are any.
        stop: ends the sweep; what is under way saves.
        console: where progress is shown.

    Returns:
        Statuses of ``RunDirectory.status``, or of the executor's last message, and their counts.
    """
    statuses = {run.directory: _status(run, retry_failed) for run in planned}
    labels = run_labels(planned)
    _print_statuses(statuses, labels, console)
    jobs = []
    for run in planned:
        if statuses[run.directory] not in ("done", "failed"):
            _lay_out(run, name)
            jobs.append(job_of(run))
    if jobs:
        executor = make_executor(jobs)
        own = {job.directory: labels[job.directory] for job in jobs}
        with Display(own, console, executor.num_workers) as display:

            def on_message(directory: Path, message: Message) -> None:
                if isinstance(message, Ended):
                    statuses[directory] = message.status
                display.on_message(directory, message)

            executor.run(jobs, stop=stop, on_message=on_message)
    return Counter(statuses.values())


def sweep_status(counts: Counter[str], stop: Stop) -> int:
    """Return the exit status of a sweep whose runs have these statuses."""
    if stop.requested:
        return stop.exit_status
    if counts["failed"] or counts["refused"]:
        return FAILED
    return DONE if set(counts) <= {"done"} else RESUMABLE


def _status(run: PlannedRun, retry_failed: bool) -> str:
    files = RunDirectory(run.directory)
    if retry_failed and files.status() == "failed":
        files.error.unlink()
    return files.status()


def _lay_out(run: PlannedRun, sweep: str) -> None:
    record = RunRecord(
        sweep=sweep,
        variant=run.variant,
        seed=run.seed,
        hash=run.hash,
        parameters=run.parameters,
    )
    RunDirectory(run.directory).prepare(run.config, record)


def _print_statuses(statuses: dict[Path, str], labels: dict[Path, str], console: Console) -> None:
    counts = Counter(statuses.values())
    words = [f"{count} {status}" for status, count in sorted(counts.items())]
    say(console, f"{len(statuses)} runs: {', '.join(words)}")
    for directory, status in statuses.items():
        if status == "failed":
            message = RunDirectory(directory).failure()
            say(console, f"{labels[directory]}: has failed: {message}; --retry-failed tries again")
