"""What commands print with: a console, times in words, and bad input in one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from rich.console import Console

from runners.process.signals import BAD_INPUT

Parameters = ParamSpec("Parameters")


def bad_input_in_one_line(main: Callable[Parameters, int]) -> Callable[Parameters, int]:
    """Make a command answer bad input (ValueError, OSError) with one line and exit status 2."""

    @functools.wraps(main)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except BrokenPipeError:  # an OSError that says nothing of the input: the reader has gone
            raise
        except (ValueError, OSError) as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return BAD_INPUT

    return run


def make_console() -> Console:
    """Return the console of the standard output; a log gets lines of 160 columns, not 80."""
    return Console(width=None if sys.stdout.isatty() else 160)


def duration(seconds: float) -> str:
    """Return a time in words: ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
