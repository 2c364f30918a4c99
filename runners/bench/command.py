"""What the benchmark commands share: checked counts, and a result that is shown and kept."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise ValueError if an option that counts something is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")


def deliver(
    result: dict[str, Any],
    options: argparse.Namespace,
    print_table: Callable[[dict[str, Any], Console], None],
    *,
    width: int = 110,
) -> None:
    """Print a result as a table, ``width`` columns wide off a terminal, and write ``--json``."""
    print_table(result, Console(width=None if sys.stdout.isatty() else width))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
