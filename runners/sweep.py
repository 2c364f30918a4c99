"""Many runs: ``python -m runners.sweep configs/cogs.yaml [key=value …]``.

A sweep is an idempotent reconcile: what has a result is skipped, what has a checkpoint is
continued, what has failed is listed and tried again with ``--retry-failed``. A failed run stops no
other. Exit status: 0 all done, 1 some run failed, 2 bad input, 75 stopped but resumable, 130
interrupted by the user.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import dataclasses
import functools
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from runners.config.commands import sweep_command
from runners.config.grid import PlannedRun, Sweep, expand, read_sweep, write_plan
from runners.config.labels import grid_values, short_keys
from runners.config.schema import ConfigError
from runners.process.messages import Ended, Message
from runners.process.run_directory import RunDirectory, RunRecord
from runners.process.signals import Stop
from runners.process.start import importing
from runners.sweeping import engines
from runners.sweeping.executor import ClusterUnavailable, Job
from runners.sweeping.local import default_workers
from runners.sweeping.progress import Display
from tasks.base.command_line import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    RESUMABLE,
    Parser,
    exit_with,
)
from tasks.base.console import make_console, say
from tasks.base.lease import Lease, Locked
from tasks.base.options import nearest
from tasks.base.storage import why_not_written

if TYPE_CHECKING:
    from runners.reporting.drawer import Drawer
    from runners.training.experiment import Built

LAID_OUT_AT_A_TIME = 16
"""Run directories that are written side by side: the waits of their fsyncs overlap."""

LONG_SECONDS = 30.0
"""Sweeps from which on it pays to prepare the report while the last runs end."""

# What imports torch is imported by the functions that need it, so that --help does not wait.


def check(
    planned: Sequence[PlannedRun], *, needs_data: bool = True, needs_device: bool = True
) -> dict[str, Built]:
    """Build what every run describes and return it by the run's hash.

    No run is written and nothing trained. Text that lies on this machine is packed; without
    ``needs_data`` a text of the hub that is not packed yet is no error, and without
    ``needs_device`` neither is a device that this machine lacks.

    Raises:
        ConfigError: a split, a size or a device that is not there.
        tasks.DataMissing, tasks.DataDamaged: a data file is missing, or not the published one.
    """
    from runners.process import environment
    from runners.training.experiment import build

    built: dict[str, Built] = {}
    for run in planned:
        if run.hash not in built:
            built[run.hash] = build(run.config, needs_data=needs_data)
            if needs_device:
                environment.check_device(run.config)
            environment.check_packages(run.config)
    return built


def planning_hash(section: dict[str, Any]) -> str:
    """Return the hash of the data of a ``task`` section, or nothing where a text is not packed."""
    from runners.training.experiment import data_hash, missing_data

    return "" if missing_data(section) else data_hash(section)


def select_variant(sweep: Sweep, planned: list[PlannedRun], only: str | None) -> list[PlannedRun]:
    """Return the runs of one variant, or all of them.

    Raises:
        ConfigError: there is no such variant.
    """
    if only is None:
        return planned
    if only not in sweep.variants:
        names = list(sweep.variants)
        raise ConfigError(
            f"--only {only}: expected one of {', '.join(names)}{nearest(only, names)}"
        )
    return [run for run in planned if run.variant == only]


def _filled_in(run: PlannedRun, built: Built) -> PlannedRun:
    """Return a run with what follows from its budgets in its config."""
    config = dataclasses.replace(built.config, seed=run.seed)
    return dataclasses.replace(run, config=config)


def _work(built: dict[str, Built]) -> dict[str, float]:
    """Return how long runs take beside each other, roughly, by hash."""
    from runners.training.operations import rough_work

    return {key: rough_work(each.config.train, each.model_config) for key, each in built.items()}


def _reference() -> str:
    from runners.config.help import sweep_help  # imports every task and every kind of block

    return sweep_help()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m runners.sweep",
        description=__doc__,
        reference=_reference,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", help="YAML file of a sweep, or the name of a shipped one: quickstart, cogs/small"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="values that replace the file's"
    )
    parser.add_argument(
        "--workers", metavar="N", type=int,
        help="runs at a time (default: one a GPU; on a CPU its cores / train.num_threads)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="train nothing and write no run: print runs, parameters, multiply-accumulates (MACs) "
        "a token, bytes of cache and activations, the time that training takes here, and budgets "
        "that are not met; text on this machine that is not packed "
        "yet is packed, into the cache (MOEUT_CACHE)",
    )  # fmt: skip
    parser.add_argument(
        "--retry-failed", action="store_true", help="try again the runs that have failed"
    )
    parser.add_argument(
        "--runs-dir", metavar="FOLDER", type=Path, default=Path("runs"),
        help="the sweep goes to FOLDER/<its name> (default: runs)",
    )  # fmt: skip
    parser.add_argument("--no-figures", action="store_true", help="end with tables alone")
    parser.add_argument("--only", metavar="VARIANT", help="only the runs of this variant")
    engines.add_arguments(parser)
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    with importing():
        from runners.reporting.drawer import Drawer
        from runners.training.experiment import data_hash, notices

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    console = make_console()
    try:
        if options.workers is not None and options.workers < 1:
            raise ConfigError(f"--workers {options.workers}: must be at least 1")
        sweep = read_sweep(options.config, options.overrides)
        directory = options.runs_dir / sweep.config.name
        engine = engines.choose(options, sweep, directory)
        if options.cancel:
            return cancel(directory, engine, console)
        hash_of = planning_hash if options.dry_run else data_hash
        planned = expand(sweep, root=options.runs_dir, data_hash=hash_of)
        chosen = select_variant(sweep, planned, options.only)
        built = check(planned, needs_data=not options.dry_run, needs_device=engine.is_here)
        for described in built.values():
            task = described.task
            sweep.check_headline(described.split_names, task.kind, task.own_metrics)
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except ClusterUnavailable as error:
        print(error, file=sys.stderr)
        return FAILED
    chosen = [_filled_in(run, built[run.hash]) for run in chosen]
    said = notices((run.variant, run.config, built[run.hash]) for run in chosen)
    for notice in (*sweep.notices, *said):
        print(notice, file=sys.stderr)
    if options.dry_run:
        from runners.sweeping.dry_run import print_plan

        jobs = [job_of(run) for run in chosen]
        workers = options.workers or default_workers(jobs, per_gpu=options.workers_per_gpu)[0]
        print_plan(chosen, built, ours=sweep.config.ours, workers=workers, console=console)
        return DONE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (
            Lease(directory, wait=1.0),
            Stop(announce=not engine.outlives_driver) as stop,
            Drawer() as drawer,
        ):
            command = sweep_command(options.config, options.overrides, options.only)
            write_plan(sweep, planned, command)
            counts = reconcile(
                chosen,
                name=sweep.config.name,
                retry_failed=options.retry_failed,
                engine=engine,
                stop=stop,
                console=console,
                work=_work(built),
                near_end=functools.partial(drawer.prepare, with_figures=not options.no_figures),
            )
            _report(directory, drawer, with_figures=not options.no_figures)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except Locked as error:
        print(error, file=sys.stderr)
        return RESUMABLE
    except ClusterUnavailable as error:
        print(error, file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, or a place that may not be written to
        print(f"{directory}: {why_not_written(error)}", file=sys.stderr)
        return FAILED
    status = sweep_status(counts, stop)
    if status in (RESUMABLE, INTERRUPTED):
        what = "jobs in the queue go on" if engine.outlives_driver else "stopped"
        print(f"{what}; the same command continues", file=sys.stderr)
    return status


def _report(directory: Path, drawer: Drawer, *, with_figures: bool) -> None:
    from runners.reporting.page import FILES, print_report, write_report

    results, trouble = write_report(directory, with_figures=with_figures, drawer=drawer)
    print_report(results)
    print(f"\nwritten to {directory}: {', '.join(FILES)}")
    if trouble:
        print(trouble, file=sys.stderr)


# --- reconcile: what the directories lack is executed, and nothing twice ----------------


def cancel(directory: Path, engine: engines.Engine, console: Console) -> int:
    """Cancel what a sweep has in a queue, say how much that was, and return the exit status.

    Raises:
        ConfigError: there is no such sweep.
    """
    assert engine.cancel is not None
    try:
        plan = json.loads((directory / "sweep.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{directory}: no sweep was begun there") from error
    count = engine.cancel(directory / run["directory"] for run in plan["runs"])
    say(console, f"{count} runs cancelled; what they have saved stays")
    return DONE


def job_of(run: PlannedRun, *, is_here: bool = True, work: float = 0.0) -> Job:
    """Return what it takes to execute a run, on this machine or on another one.

    Of another machine's devices nothing is known: there a run uses a GPU if it asks for one.
    """
    from runners.process.environment import choose_device

    train = run.config.train
    device = choose_device(train).type if is_here else train.device
    uses_gpu = device == "cuda"
    return Job(run.directory, train.num_threads, uses_gpu=uses_gpu, steps=train.steps, work=work)


def run_labels(planned: Sequence[PlannedRun]) -> dict[Path, str]:
    """Return the name of each run in progress lines, by its directory: variant, values, seed."""
    short = short_keys(key for run in planned for key in run.parameters)
    labels = {}
    for run in planned:
        values = grid_values(run.parameters, short)
        labels[run.directory] = " ".join([run.variant, *values, f"seed {run.seed}"])
    return labels


def reconcile(
    planned: Sequence[PlannedRun],
    *,
    name: str,
    retry_failed: bool,
    engine: engines.Engine,
    stop: Stop,
    console: Console,
    work: Mapping[str, float] = {},
    near_end: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """Execute what is not done yet and return how many runs have which status.

    Args:
        planned: the runs; the caller holds the lease of their sweep's directory.
        name: of the sweep.
        retry_failed: whether to try again what has failed.
        engine: gets the jobs that there are, if there are any.
        stop: ends the sweep; what is under way saves.
        console: where progress is shown.
        work: hash of a run → how long it takes beside others, roughly.
        near_end: called when a worker of a long sweep has nothing left to do and another has.

    Returns:
        Statuses of ``RunDirectory.status``, or of the executor's last message, and their counts.
    """
    statuses = {run.directory: _status(run, retry_failed) for run in planned}
    statuses |= engine.states(
        [path for path, status in statuses.items() if status not in ("done", "failed")]
    )
    labels = run_labels(planned)
    _print_statuses(statuses, labels, console)
    _lay_out([run for run in planned if statuses[run.directory] in ("new", "resumable")], name)
    unfinished = [run for run in planned if statuses[run.directory] not in ("done", "failed")]
    jobs = [job_of(run, is_here=engine.is_here, work=work.get(run.hash, 0.0)) for run in unfinished]
    if jobs:
        executor = engine.make(jobs)
        own = {job.directory: labels[job.directory] for job in jobs}
        running, began = len(jobs), time.monotonic()
        with Display(own, console, executor.num_workers) as display:

            def on_message(directory: Path, message: Message) -> None:
                nonlocal running
                if isinstance(message, Ended):
                    statuses[directory] = message.status
                    running -= 1
                    is_long = time.monotonic() - began > LONG_SECONDS
                    if is_long and 0 < running < executor.num_workers:
                        near_end()
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


def _lay_out(planned: Sequence[PlannedRun], sweep: str) -> None:
    """Write what the runs are; several at a time, since most of it is waiting for the disk."""

    def lay_out(run: PlannedRun) -> None:
        record = RunRecord(
            sweep=sweep,
            variant=run.variant,
            seed=run.seed,
            hash=run.hash,
            parameters=run.parameters,
        )
        RunDirectory(run.directory).prepare(run.config, record)

    with ThreadPoolExecutor(LAID_OUT_AT_A_TIME) as threads:
        list(threads.map(lay_out, planned))  # the first error ends it


def _print_statuses(statuses: dict[Path, str], labels: dict[Path, str], console: Console) -> None:
    counts = Counter(statuses.values())
    words = [f"{count} {status}" for status, count in sorted(counts.items())]
    say(console, f"{len(statuses)} runs: {', '.join(words)}")
    for directory, status in statuses.items():
        if status == "failed":
            message = RunDirectory(directory).failure()
            say(console, f"{labels[directory]}: has failed: {message}; --retry-failed tries again")


if __name__ == "__main__":
    exit_with(main)
