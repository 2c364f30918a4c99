"""Run one benchmark: ``python -m runners.bench experts``."""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import os
import sys
from collections.abc import Sequence

# Read by PyTorch at its first allocation, so it has to be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from runners.bench import (
    cost,
    data,
    everything,
    experts,
    generate,
    kernels,
    model,
    participation,
    small_runs,
    step,
    sweep,
)
from runners.bench.command import DEVICE_FAILED
from runners.bench.timing import DeviceFailedError
from tasks.base.command_line import BAD_INPUT, Parser, exit_with

BENCHMARKS = {
    "all": everything,
    "experts": experts,
    "model": model,
    "kernels": kernels,
    "data": data,
    "generate": generate,
    "step": step,
    "sweep": sweep,
    "small-runs": small_runs,
    "participation": participation,
    "cost": cost,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the benchmark it names and return the exit status."""
    parser = Parser(
        prog="python -m runners.bench",
        description=__doc__,
        epilog="Each benchmark has its own help: python -m runners.bench experts --help",
    )
    subparsers = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, module in BENCHMARKS.items():
        module.add_parser(subparsers, name)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.command = list(arguments)
    try:
        return options.run(options)
    except ValueError as error:
        print(f"runners.bench: {error}", file=sys.stderr)
        return BAD_INPUT
    except DeviceFailedError as error:
        print(f"runners.bench: the device failed, {error}; --resume goes on", file=sys.stderr)
        return DEVICE_FAILED


if __name__ == "__main__":
    exit_with(main)
