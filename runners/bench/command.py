"""What the benchmark commands share: checked counts, tables, and results that survive a stop."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DEVICE_FAILED = 3
"""Exit status after an error that leaves the device unusable for this process."""

Printer = Callable[[dict[str, Any], Console], None]


@dataclasses.dataclass(frozen=True)
class Section:
    """Hold a table as text, for a terminal and for Markdown alike."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A row that starts with an empty cell goes on about the one before."""

    notes: Sequence[str] = ()
    num_names: int = 2
    """How many columns are names, and not numbers."""

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.title)
        for position, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if position < self.num_names else "right")
        is_grouped = any(not row[0] for row in self.rows)
        for position, row in enumerate(self.rows):
            if is_grouped and position and row[0]:
                table.add_section()
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False)

    def markdown(self) -> str:
        """Return it as a Markdown table under a heading."""
        rule = ["---"] * self.num_names + ["---:"] * (len(self.headings) - self.num_names)
        table = [_markdown_row(row) for row in (self.headings, rule, *self.rows)]
        notes = [f"* {note}" for note in self.notes]
        return "\n".join([f"## {self.title}", "", *table, *([""] if notes else []), *notes, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def ditto(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Empty the first cell of rows that repeat that of the row before."""
    firsts = [None, *(row[0] for row in rows)]
    return [
        ["" if row[0] == before else row[0], *row[1:]]
        for row, before in zip(rows, firsts, strict=False)
    ]


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise ValueError if an option that counts something is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")


def command_line(options: argparse.Namespace) -> str:
    """Return the command that was given."""
    return shlex.join(["python", "-m", "runners.bench", *options.command])


def deliver(
    result: dict[str, Any],
    options: argparse.Namespace,
    print_table: Printer,
    *,
    width: int = 110,
) -> None:
    """Print a result as a table, ``width`` columns wide off a terminal, and write ``--json``."""
    print_table(result, Console(width=None if sys.stdout.isatty() else width))
    save(result, options)


def save(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write a result, or what there is of it, to ``--json`` where that is given."""
    if options.json is not None:
        write(options.json, json.dumps(result, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file in one go, so that a stop never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def fresh_result(
    benchmark: str, options: argparse.Namespace, machine: dict[str, Any], **conditions: Any
) -> dict[str, Any]:
    """Return a result without rows: what it depends on, and where it stands."""
    versions = (machine.get(key) for key in ("torch", "triton"))
    hardware = [machine.get("gpu", machine["cpu"]), *versions]
    return {
        "benchmark": benchmark,
        "command": command_line(options),
        "conditions": ", ".join(str(one) for one in hardware),
        "machine": machine,
        **conditions,
        "rows": [],
        "failures": {},
        "done": [],
        "trying": None,
    }


def resumed(options: argparse.Namespace, fresh: dict[str, Any], *same: str) -> dict[str, Any]:
    """Return the result in the file of ``--json`` to go on with, or ``fresh`` without --resume.

    ``rows``, ``failures`` and ``done`` come from the file.

    Raises:
        ValueError: the file is of another benchmark or of other conditions (``same``).
    """
    if not options.resume:
        return fresh
    if options.json is None:
        raise ValueError("--resume: expected --json FILE too")
    if not options.json.exists():
        return fresh
    before = json.loads(options.json.read_text())
    for key in ("benchmark", "conditions", *same):
        if before.get(key) != fresh[key]:
            raise ValueError(
                f"--resume: {options.json} has {key} {before.get(key)!r}: expected {fresh[key]!r}"
            )
    return fresh | {key: before[key] for key in ("rows", "failures", "done")}


def blame(result: dict[str, Any], problem: str) -> None:
    """Count what was being tried, a size or one competitor in it, as failed, and not to be tried
    again."""
    trying = result["trying"]
    size, is_competitor, _ = trying.partition(", ")
    result["failures"][trying] = problem
    if not is_competitor:
        result["done"].append(size)
    result["trying"] = None


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


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a result goes."""
    parser.add_argument(
        "--json", type=Path, default=None, metavar="FILE", help="write here, after every size"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the sizes that the file of --json has"
    )
