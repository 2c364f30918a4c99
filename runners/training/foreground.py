"""One run in front of its user: what is checked before, what is printed, how the command ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from runners.config.schema import ConfigError, RunConfig
from runners.process import environment, ranks, signals
from runners.process.messages import Notice, OnProgress, Progress, TrainingProgress
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stopped
from runners.reporting.run_result import RunResult
from tasks.base.command_line import BAD_INPUT, DONE, FAILED, RESUMABLE
from tasks.base.lease import Locked
from tasks.base.storage import why_not_written


class Runs(Protocol):
    """``runners.run.run``, which trains and scores the run of a directory."""

    def __call__(
        self, directory: Path, *, stop: signals.Stop, on_progress: OnProgress, world: World
    ) -> Literal["done", "failed"]: ...


def check_start(config: RunConfig, world: World) -> None:
    """Check what a run needs of this machine and of its ranks before anything is written.

    Raises:
        ValueError: a batch that the ranks cannot share, or a device or package that is not there.
    """
    ranks.check_batch(config, world.size)
    environment.check_packages(config)
    environment.check_device(config, local_rank=world.local_rank if world.size > 1 else None)


def execute(
    run: Runs,
    files: RunDirectory,
    world: World,
    *,
    retry_failed: bool,
    lay_out: Callable[[], None] = lambda: None,
) -> int:
    """Execute a run, print how far it is and its result, and return the exit status.

    The status is the same on every rank. What is said is said by rank 0 alone.

    Args:
        run: what executes it.
        files: the directory, checked.
        world: this process's place among the ranks.
        retry_failed: whether to try again what has failed.
        lay_out: writes what the directory lacks before the run begins.
    """

    def say(text: object, *, error: bool = False) -> None:
        if world.is_first:
            print(text, file=sys.stderr if error else sys.stdout, flush=True)

    before = world.share(files.status())
    if before == "failed" and not retry_failed:
        say(f"{files.path}: has failed: {files.failure()}; try again with --retry-failed")
        return FAILED
    say(f"{files.path}: {before}")
    problem = None
    if before != "done" and world.is_first:
        try:
            lay_out()
        except OSError as error:
            problem = why_not_written(error)
    problem = world.share(problem)
    if problem is not None:
        say(f"{files.path}: cannot be written: {problem}", error=True)
        return FAILED
    with signals.Stop(announce=world.is_first, restore=world.size == 1) as stop:
        try:
            status = run(files.path, stop=stop, on_progress=_print_progress, world=world)
        except Stopped as stopped:
            say(f"{stopped}; the same command continues", error=True)
            return stop.exit_status
        except Locked as error:
            say(error, error=True)
            return RESUMABLE
        except ConfigError as error:
            say(error, error=True)
            return BAD_INPUT
        except OSError as error:  # in the run itself it would be why the run has failed
            say(f"{files.path}: cannot be written: {why_not_written(error)}", error=True)
            return FAILED
    if status == "failed":
        say(files.failure(), error=True)
        return FAILED
    if world.is_first:
        _print_result(files)
    return DONE


def _print_progress(message: Progress) -> None:
    if isinstance(message, Notice):  # the log, which is on this terminal too, has it
        return
    if isinstance(message, TrainingProgress):
        text = f"loss {message.loss:.4f}  {message.tokens_per_second:,.0f} tokens/s"
    else:
        text = f"score {message.split} {message.rows}/{message.of_rows}"
    print(f"step {message.step}/{message.steps}  {text}", flush=True)


def _print_result(files: RunDirectory) -> None:
    result = RunResult.from_json(json.loads(files.result.read_text(encoding="utf-8")))
    for note in result.notes:
        print(note)
    for score in result.scores:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in score.metrics.items())
        print(f"{score.split} (depth {score.repeats}, {score.rows} rows): {metrics}")
