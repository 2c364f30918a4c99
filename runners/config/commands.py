"""The commands that make a sweep and its runs again: kept in ``sweep.json``, shown on its page.

A command is a list: the module, then its arguments. Where runs go and how many at a time decides
no result and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ONLY = "--only"
AGAIN = ["--runs-dir", "again"]
"""Where a single run goes: in the sweep's own directory it would shrink the plan."""

TRAIN = ("runners", "train.py")

Command = list[str]


def sweep_command(config: str, overrides: Sequence[str], only: str | None) -> Command:
    """Return the command of a sweep, of one variant or of all."""
    return ["runners.sweep", config, *overrides, *([ONLY, only] if only is not None else [])]


def with_earlier(path: Path, command: Command) -> list[Command]:
    """Return the commands of the sweep that ``sweep.json`` is of, this one among them.

    Those of another file or other overrides made another plan, and are dropped. Where one was for
    all variants, it makes what those for a single variant do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("commands", [])
    except (OSError, ValueError, AttributeError):
        found = []
    same = [each for each in found if _whole(each) == _whole(command)]
    commands = same if command in same else [*same, command]
    return [each for each in commands if each == _whole(each)] or commands


def run_command(
    command: Command, variant: str, parameters: Mapping[str, Any], seed: int
) -> Command:
    """Return the command that makes one run of a sweep's command."""
    module, config, *overrides = _whole(command)
    kept = [each for each in overrides if each.partition("=")[0].strip() != "seeds"]
    point = [f"{key}={json.dumps(value)}" for key, value in parameters.items()]
    return [module, config, *kept, *point, f"seeds=[{seed}]", ONLY, variant, *AGAIN]


def single_command(argv: Any, directory: str) -> Command:
    """Return the command of a run outside of a sweep.

    Args:
        argv: of the process that began it, as ``env.json`` has it; anything where it has none.
        directory: of the run, for the config there where ``argv`` tells nothing.
    """
    if isinstance(argv, list) and len(argv) > 1 and Path(str(argv[0])).parts[-2:] == TRAIN:
        return ["runners.train", *map(str, argv[1:])]
    return ["runners.train", f"{directory}/config.yaml"]


def _whole(command: Command) -> Command:
    """Return the command for all variants."""
    return command[: command.index(ONLY)] if ONLY in command else command
