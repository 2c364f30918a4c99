"""Several sweeps on one page: ``python -m runners.compare runs/a runs/b``.

Writes the files of a report, report.html among them, of all their runs together into a directory of
their own. Refuses sweeps that do not share task, data, split and metric.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runners.config.yaml_nodes import ConfigError
from runners.reporting.page import FILES, print_report, write_files
from runners.reporting.results import load
from runners.reporting.together import together
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with


@bad_input_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m runners.compare`` and return its exit status."""
    parser = Parser(
        prog="python -m runners.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweeps", metavar="SWEEP", nargs="+", help="directories of sweeps")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="where the files go (default: beside the first sweep, named after them all)",
    )
    parser.add_argument("--no-figures", action="store_true", help="write no PNG, PDF and SVG")
    options = parser.parse_args(arguments)
    if len(options.sweeps) < 2:
        raise ConfigError("command line: expected at least two sweeps")
    sweeps = [load(path) for path in options.sweeps]
    first = sweeps[0].directory
    names = "+".join(sweep.directory.resolve().name for sweep in sweeps)
    output = options.output or first.resolve().parent / names
    results = together(sweeps, output)
    output.mkdir(parents=True, exist_ok=True)
    trouble = write_files(results, with_figures=not options.no_figures)
    print_report(results)
    print(f"\nwritten to {output}: {', '.join(FILES)}")
    if trouble:
        print(trouble, file=sys.stderr)
    return DONE


if __name__ == "__main__":
    exit_with(main)
