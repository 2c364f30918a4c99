"""What the benchmark commands share: their options, and how a result is shown and written."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from runners.bench.results import write_result
from runners.reporting.tables import Table, to_rich
from tasks.base.console import make_console

DEVICE_FAILED = 3
"""Exit status after an error that leaves the device unusable for this process."""


def command_line(options: argparse.Namespace) -> str:
    """Return the command that was given."""
    return shlex.join(["python", "-m", "runners.bench", *options.command])


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise ValueError if an option that counts something is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")


def choose_device(options: argparse.Namespace) -> bool:
    """Fill in ``--device`` where it was not given, and return whether it is a CUDA device.

    Raises:
        ValueError: a CUDA device was asked for and there is none.
    """
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: no CUDA device is available")
    return on_gpu


def deliver(
    result: dict[str, Any],
    options: argparse.Namespace,
    heading: str,
    tables: Sequence[Table],
    *,
    width: int = 110,
) -> None:
    """Print a heading and tables, ``width`` columns wide off a terminal, and write ``--json``."""
    console = make_console(width)
    console.print(Text(heading))
    for table in tables:
        console.print(to_rich(table))
        for note in table.notes:
            console.print(Text(note))
    if options.json is not None:
        write_result(options.json, result)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to run on."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads within an operation")
    parser.add_argument("--device", default=None, help="cpu or cuda (timed by events)")


def add_peer_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names other implementations."""
    parser.add_argument(
        *("--peer", "-p"),
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also time another implementation; may be repeated (see runners/bench/peers.py)",
    )


def add_tune_option(parser: argparse.ArgumentParser) -> None:
    """Add the option to search for block sizes."""
    parser.add_argument(
        "--tune", action="store_true", help="search for block sizes first, and keep them on disk"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where a result goes."""
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write here")


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a result that is written size by size, and can go on after a stop."""
    parser.add_argument(
        "--json", type=Path, default=None, metavar="FILE", help="write here, after every size"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the sizes that the file of --json has"
    )
