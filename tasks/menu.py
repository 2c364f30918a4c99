"""Shared by the commands over tasks: a task from words, and help that lists every option."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from tasks import TASKS, Task, create, task_class
from tasks.base import options
from tasks.base.command_line import Parser

WIDTH = 96
"""Columns of what ``--help`` explains."""


def task_parser(module: str, description: str, *, needs_task: bool = True) -> Parser:
    """Return a parser that reads a task's name and ``option=value`` words.

    Without ``needs_task`` the name may be left out, and is then None.
    """
    parser = Parser(
        prog=f"python -m tasks.{module}",
        description=description,
        epilog=f"tasks and their options:\n\n{describe_tasks()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count: Any = {} if needs_task else {"nargs": "?"}
    parser.add_argument("task", help="which task, see below", **count)
    parser.add_argument("options", nargs="*", metavar="option=value", help="options of the task")
    return parser


def parse_task_arguments(parser: Parser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line on which option=value words and flags stand in any order."""
    return parser.parse_intermixed_args(words)


def task_from_words(name: str, words: Sequence[str]) -> Task:
    """Return the task of a name with options given as ``option=value`` words.

    Raises:
        ValueError: an unknown task or option, or a wrong value.
    """
    return create(name, **options.parse_words(name, task_class(name), words))


def describe_options(cls: type, indent: int) -> str:
    """Return every option of a task with its type, default and meaning, as ``--help`` prints it."""
    lines = []
    margin = " " * (indent + 4)
    for option in options.describe(cls).values():
        # As JSON, the way a word of the command line gives it.
        default = "required" if option.is_required else f"default {json.dumps(option.default)}"
        lines.append(f"{margin[4:]}{option.name}: {options.type_words(option.type)}; {default}")
        if option.doc:
            lines.append(fill(option.doc, WIDTH, initial_indent=margin, subsequent_indent=margin))
    return "\n".join(lines)


def describe_tasks() -> str:
    """Return every task with its options."""
    return "\n\n".join(
        f"{name}: {(inspect.getdoc(cls) or '').splitlines()[0]}\n{describe_options(cls, 4)}"
        for name, cls in ((name, task_class(name)) for name in TASKS)
    )
