"""One run: ``python -m runners.train config.yaml [key=value …]``.

The run's directory is its whole state: the same command begins it, continues it from its last whole
checkpoint, or finds it done. Exit status: 0 done, 1 failed, 2 bad input, 75 stopped but resumable,
130 interrupted by the user.

On several devices::

    torchrun --standalone --nproc-per-node 8 -m runners.train config.yaml [key=value …]

Every rank ends with the status above. torchrun itself ends with 0 if all ranks are done and with 1
otherwise: the ranks' status stands in its report (``exitcode``) or, after a signal, nowhere, and
what it prints after "the same command continues" is its own traceback. SIGTERM and SIGINT sent to
torchrun reach the ranks, which save and leave; SIGUSR1 and SIGUSR2 do so with
``--signals-to-handle SIGTERM,SIGINT,SIGUSR1,SIGUSR2`` or when sent to a rank, of which one is
enough. Saving has to end within torchrun's ``--shutdown-timeout`` (30 s). A run may go on with
another number of ranks, or with one process.
"""

from __future__ import annotations

from runners.process.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # what follows takes seconds to import

import argparse
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from runners.config.help import run_help
from runners.config.run_file import difference, read_run, to_yaml
from runners.config.schema import ConfigError, RunConfig
from runners.process import environment, ranks, signals
from runners.process.lease import Locked
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory, RunRecord
from runners.process.signals import Stopped
from runners.run import run
from runners.training.experiment import build, build_task
from runners.training.tensorboard import check_tensorboard
from tasks.base import exit_status
from tasks.base.command_line import Parser


def plan_single(config: RunConfig, *, name: str, root: Path) -> tuple[Path, RunRecord]:
    """Return the directory of a run outside of a sweep, and its record."""
    digest = config.hash(build_task(config.task).data_hash())
    variant = config.model.architecture
    record = RunRecord(sweep=name, variant=variant, seed=config.seed, hash=digest)
    return root / name / f"{variant}-{digest}" / f"seed{config.seed}", record


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m runners.train",
        description=__doc__,
        epilog=run_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of a run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values that replace the file's, as train.steps=100",
    )
    parser.add_argument(
        "--runs-dir", metavar="FOLDER", type=Path, default=Path("runs"),
        help="runs go to FOLDER/<config's name>/<architecture>-<hash>/seed<k> (default: runs)",
    )  # fmt: skip
    parser.add_argument(
        "--run-directory", metavar="FOLDER", type=Path, help="the run goes to this folder itself"
    )
    parser.add_argument("--retry-failed", action="store_true", help="try again if it has failed")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    first = int(os.environ["RANK"]) == 0 if ranks.is_launched() else True
    with contextlib.ExitStack() as stack:
        if not first:  # what every rank has to say is said once
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        options = _parse(sys.argv[1:] if arguments is None else arguments)
    level = logging.INFO if first else logging.WARNING  # what holds for all ranks is said once
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level, stream=sys.stderr)
    world = ranks.join()
    status = _train(options, world)
    ranks.leave(world)
    return status


def _train(options: argparse.Namespace, world: World) -> int:
    """Do what the command line says on this rank; return the exit status, the same on every."""

    def say(text: object, *, error: bool = False) -> None:
        if world.is_first:
            print(text, file=sys.stderr if error else sys.stdout, flush=True)

    problem = None
    try:
        config, record, files = _prepare(options, world)
    except ValueError as error:
        problem = str(error)
    problems = [text for text in world.gather(problem) if text is not None]
    if problems:
        say(problems[0], error=True)
        return exit_status.BAD_INPUT
    directory = files.path
    before = world.share(files.status())
    if before == "failed" and not options.retry_failed:
        say(f"{directory}: has failed: {files.failure()}; try again with --retry-failed")
        return exit_status.FAILED
    say(f"{directory}: {before}")
    if before != "done" and world.is_first:
        files.prepare(config, record)
    world.wait()
    with signals.Stop(announce=world.is_first, restore=world.size == 1) as stop:
        try:
            status = run(directory, stop=stop, on_progress=_print_progress, world=world)
        except Stopped as stopped:
            say(f"{stopped}; the same command continues", error=True)
            return stop.exit_status
        except Locked as error:
            say(error, error=True)
            return exit_status.RESUMABLE
        except ConfigError as error:
            say(error, error=True)
            return exit_status.BAD_INPUT
    if status == "failed":
        say(files.failure(), error=True)
        return exit_status.FAILED
    if world.is_first:
        _print_result(files)
    return exit_status.DONE


def _prepare(
    options: argparse.Namespace, world: World
) -> tuple[RunConfig, RunRecord, RunDirectory]:
    """Check all that can be checked before anything is written."""
    config = read_run(options.config, options.overrides)
    ranks.check_batch(config, world.size)
    check_tensorboard(config)
    build(config)
    environment.check_device(config, local_rank=world.local_rank if world.size > 1 else None)
    directory, record = plan_single(config, name=Path(options.config).stem, root=options.runs_dir)
    if options.run_directory is not None:
        directory = options.run_directory
    files = RunDirectory(directory)
    _check_directory(files, config, record)
    return config, record, files


def _check_directory(files: RunDirectory, config: RunConfig, record: RunRecord) -> None:
    """Raise ConfigError if a directory holds a run with another config, and show the difference."""
    if not files.config.is_file():
        return
    if (files.path / "run.json").is_file() and files.read_record().hash == record.hash:
        return
    changed = difference(files.config.read_text(), to_yaml(config))
    raise ConfigError(
        f"{files.path}: holds a run with another config: {changed or 'its data was changed'}"
    )


def _print_progress(message: dict[str, Any]) -> None:
    if message.get("event") == "notice":
        print(message["message"], file=sys.stderr)
        return
    if message["phase"] == "train":
        text = f"loss {message['loss']:.4f}  {message['tokens_per_second']:,.0f} tokens/s"
    else:
        text = f"{message['phase']} {message['rows']}/{message['of_rows']}"
    print(f"step {message['step']}/{message['steps']}  {text}", flush=True)


def _print_result(files: RunDirectory) -> None:
    content = json.loads(files.result.read_text())
    for note in content["notes"]:
        print(note)
    for entry in content["scores"]:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in entry["metrics"].items())
        print(f"{entry['split']} (depth {entry['repeats']}, {entry['rows']} rows): {metrics}")


if __name__ == "__main__":
    exit_status.exit_with(main)
