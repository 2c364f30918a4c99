"""Tables, statistics and figures of a sweep, from what its runs left on disk.

::

    python -m runners.report runs/quickstart

writes into the sweep's directory:

    results.csv       one row per run and metric; no times, so the same bytes after any interruption
    report.html       everything on one page, which opens in a browser without network
    breakdown.csv     one row per run and category, difficulty or row of a task's own table
    timings.csv       one row per run
    summary.md        the tables; summary.tex: for a paper (booktabs); summary.json: all numbers
    figures/          difficulty, depth, learning: PNG, PDF and SVG; of many models the best
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from runners.config.yaml_nodes import ConfigError
from runners.reporting.page import FILES, print_report, write_files
from runners.reporting.results import SweepResults, load
from runners.reporting.shown import MOST_MODELS, MOST_PANELS
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with
from tasks.base.options import nearest


@bad_input_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m runners.report`` and return its exit status."""
    parser = Parser(
        prog="python -m runners.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP", help="directory of a sweep, as runs/quickstart")
    parser.add_argument("--baseline", help="variant that the others are tested against")
    parser.add_argument("--split", help="split of the main column")
    parser.add_argument("--metric", help="metric of the main column")
    parser.add_argument(
        "--models", metavar="N", type=int,
        help=f"models that figures show, the best of them (default: {MOST_MODELS}; where a model "
        f"has panels of its own, as many as make {MOST_PANELS}); tables have all",
    )  # fmt: skip
    parser.add_argument("--no-figures", action="store_true", help="write no PNG, PDF and SVG")
    options = parser.parse_args(arguments)
    results = _with_choices(load(options.sweep), options)
    trouble = write_files(results, with_figures=not options.no_figures)
    print_report(results)
    print(f"\nwritten to {results.directory}: {', '.join(FILES)}")
    if trouble:
        print(trouble, file=sys.stderr)
    return DONE


def _with_choices(results: SweepResults, options: argparse.Namespace) -> SweepResults:
    """Return the results with what the command line chooses instead of the sweep's file."""
    choices: dict[str, tuple[str | None, list[str]]] = {
        "baseline": (options.baseline, list(dict.fromkeys(s.variant for s in results.settings))),
        "split": (options.split, results.splits()),
        "metric": (options.metric, results.metrics()),
    }
    for name, (value, allowed) in choices.items():
        if value is not None and value not in allowed:
            raise ConfigError(
                f"command line: --{name}={value!r}: expected one of {', '.join(allowed)}"
                f"{nearest(value, allowed)}"
            )
    if options.models is not None and options.models < 1:
        raise ConfigError(f"command line: --models={options.models}: must be at least 1")
    named = {
        name: value
        for name, (value, _) in choices.items()
        if value is not None and name in ("split", "metric")
    }
    return dataclasses.replace(
        results,
        baseline=options.baseline or results.baseline,
        headline={**results.headline, **named},
        models_shown=options.models,
    )


if __name__ == "__main__":
    exit_with(main)
