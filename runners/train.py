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

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runners.config.run_file import difference, read_run, to_yaml
from runners.config.schema import ConfigError, RunConfig
from runners.process.run_directory import RunDirectory, RunRecord
from runners.process.start import importing, silent_but_first
from tasks.base.command_line import BAD_INPUT, Parser, exit_with

if TYPE_CHECKING:
    from runners.process.ranks import World

# What imports torch is imported by the functions that need it, so that --help does not wait.


def plan_single(config: RunConfig, *, name: str, root: Path) -> tuple[Path, RunRecord]:
    """Return the directory of a run outside of a sweep, and its record."""
    from runners.training.experiment import build_task

    digest = config.hash(build_task(config.task).data_hash())
    variant = config.model.architecture
    record = RunRecord(sweep=name, variant=variant, seed=config.seed, hash=digest)
    return root / name / f"{variant}-{digest}" / f"seed{config.seed}", record


def _reference() -> str:
    from runners.config.help import run_help  # imports every task and every kind of block

    return run_help()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m runners.train",
        description=__doc__,
        reference=_reference,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", help="YAML file of a run, or the name of a shipped one: language/44m"
    )
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
    with silent_but_first():
        options = _parse(sys.argv[1:] if arguments is None else arguments)
    with importing():
        from runners.process.ranks import check_together, run_together
        from runners.run import run
        from runners.training.foreground import execute

    def work(world: World) -> int:
        checked = check_together(world, lambda: _check(options, world))
        if checked is None:
            return BAD_INPUT
        config, record, files = checked
        return execute(
            run,
            files,
            world,
            retry_failed=options.retry_failed,
            lay_out=lambda: files.prepare(config, record),
        )

    return run_together(work)


def _check(options: argparse.Namespace, world: World) -> tuple[RunConfig, RunRecord, RunDirectory]:
    """Check all that can be checked before anything is written."""
    from runners.training.experiment import build, notices
    from runners.training.foreground import check_start

    config = read_run(options.config, options.overrides)
    check_start(config, world)
    built = build(config)
    config = built.config
    if world.is_first:
        for notice in notices([("this run", config, built)]):
            print(notice, file=sys.stderr)
    directory, record = plan_single(config, name=Path(options.config).stem, root=options.runs_dir)
    files = RunDirectory(options.run_directory or directory)
    return config, _check_directory(files, config, record, world), files


def _check_directory(
    files: RunDirectory, config: RunConfig, record: RunRecord, world: World
) -> RunRecord:
    """Return what the directory says of its run, or the record of a run that begins there.

    A run that a sweep has planned stays the sweep's. Where ``run.json`` is lost but the config is
    the same, the run goes on under the record given.

    Raises:
        ConfigError: it holds a run with another config; the message shows the difference.
    """
    if not files.config.is_file():
        return record
    changed = difference(files.config.read_text(encoding="utf-8"), to_yaml(config))
    try:
        found = files.read_record()
    except ConfigError:
        if changed:
            raise _another(files, changed) from None
        # A checkpoint has the hash too, and is refused if it is another run's.
        if world.is_first:
            lost = f"{files.record}: lost or damaged; written anew, as of a run outside of a sweep"
            print(lost, file=sys.stderr)
        return record
    if (found.hash, found.seed) == (record.hash, record.seed):
        return found
    raise _another(files, changed or "its data was changed")


def _another(files: RunDirectory, changed: str) -> ConfigError:
    return ConfigError(f"{files.path}: holds a run with another config: {changed}")


if __name__ == "__main__":
    exit_with(main)
