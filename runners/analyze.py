"""Look into trained models: ``python -m runners.analyze RUN|SWEEP [--probe lens …]``.

Writes a table (CSV), a figure and a line of what it cannot say for each analysis into
``RUN/analysis/<split>/``; of a sweep, for every finished run, and all tables together into
``SWEEP/analysis/<split>/``. The next report of the sweep shows them on its page.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
from collections.abc import Sequence
from pathlib import Path

from runners.analysis.catalogue import ANALYSES, analyse
from runners.analysis.findings import Finding, Row, to_csv, write
from runners.reporting.results import load
from runners.scoring.finished_run import load_finished_run
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with
from tasks.base.console import make_console, say
from tasks.base.storage import write_atomically


@bad_input_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    if options.rows < 1:
        raise ValueError(f"--rows {options.rows}: must be at least 1")
    if not (options.path / "sweep.json").is_file():
        _analyse(options.path, options)
        return DONE
    together: dict[str, list[Row]] = {}
    folder = None
    results = load(options.path)
    done = [run for run in results.runs if run.status == "done"]
    if not done:
        raise ValueError(f"{options.path}: no run of this sweep has ended yet")
    for run in done:
        found, folder = _analyse(run.directory, options)
        head = results.identity(run)
        for finding in found:
            together.setdefault(finding.name, []).extend(head | row for row in finding.rows)
    assert folder is not None
    whole = options.path / "analysis" / folder.name
    whole.mkdir(parents=True, exist_ok=True)
    for name, rows in together.items():
        write_atomically(whole / f"{name}.csv", to_csv(rows))
    console = make_console()
    say(console, f"{len(done)} runs: tables of all in {whole}")
    say(console, f"python -m runners.report {options.path} shows them on the page")
    return DONE


def _analyse(directory: Path, options: argparse.Namespace) -> tuple[list[Finding], Path]:
    """Analyse a run, write what was found and return it with its folder."""
    run = load_finished_run(directory)
    split = options.split or run.built.final_splits(run.config)[-1]
    found, left_out = analyse(
        run, options.probe, split=split, rows=options.rows, repeats=options.repeats
    )
    folder = directory / "analysis" / split
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# Analyses of {directory.parent.name}/{directory.name} on {split}", ""]
    for finding in found:
        write(finding, folder)
        lines += [f"- **{finding.name}**: {finding.title}. *What it cannot say:* {finding.limits}"]
    lines += [f"- {name}: left out, {reason}" for name, reason in left_out.items()]
    write_atomically(folder / "analysis.md", "\n".join(lines) + "\n")
    console = make_console()
    say(console, f"{directory}: {len(found)} tables and figures in {folder}")
    for name, reason in left_out.items():
        say(console, f"  {name}: left out, {reason}")
    return found, folder


def _parser() -> Parser:
    parser = Parser(
        prog="python -m runners.analyze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="RUN|SWEEP", help="directory of either")
    parser.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="NAME",
        help=f"which analysis, may be repeated: {', '.join(ANALYSES)} (default: all)",
    )
    parser.add_argument("--split", metavar="NAME", help="default: the last that the run scores")
    parser.add_argument(
        "--rows", type=int, default=512, metavar="N", help="rows, evenly spread (default: 512)"
    )
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="depth of a model that shares layers"
    )
    return parser


if __name__ == "__main__":
    exit_with(main)
