"""What the commands of ``tasks`` share: one-line errors, tasks from words, help that teaches."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tasks import TASKS, Task, create, options, task_class

BAD_INPUT = 2
"""Exit status for input that is wrong, or data that is missing."""
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        sys.exit(BAD_INPUT)


def task_parser(module: str, description: str) -> Parser:
    """Return a parser that reads a task's name and ``option=value`` words."""
    parser = Parser(
        prog=f"python -m tasks.{module}",
        description=description,
        epilog=f"tasks and their options:\n\n{describe_tasks()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", help="which task, see below")
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


def describe_tasks() -> str:
    """Return every task with its options, types, defaults and what they mean."""
    lines = []
    for name, cls in TASKS.items():
        summary = (inspect.getdoc(cls) or "").split("\n")[0]
        lines.append(f"{name}: {summary}")
        for option in options.describe(cls).values():
            default = "required" if option.is_required else f"default {option.default!r}"
            lines.append(f"    {option.name}: {options.type_words(option.type)}; {default}")
            if option.doc:
                lines.append(f"        {option.doc}")
        lines.append("")
    return "\n".join(lines).rstrip()


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a command and exit: 0 done, 2 bad input in one line on stderr, 130 interrupted."""
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(BAD_INPUT)
    sys.exit(0)
