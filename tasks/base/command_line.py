"""Shared by all commands: their parser, how they answer wrong input, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec

DONE, FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
"""75 is EX_TEMPFAIL, on which batch systems try again; 130 is what shells give to Ctrl-C."""

Parameters = ParamSpec("Parameters")


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line and exit status 2.

    ``reference`` makes the text below the options of ``--help``, when that is asked for.
    """

    def __init__(
        self, *arguments: Any, reference: Callable[[], str] | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._reference = reference

    def format_help(self) -> str:
        if self._reference is not None:
            self.epilog = self._reference()
        return super().format_help()

    def print_help(self, file: Any = None) -> None:
        # argparse swallows that the reader has gone.
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        sys.exit(BAD_INPUT)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command of ``tasks`` and exit; a wrong value or file is one line and status 2."""
    # A reader that has seen enough of a listing is no error.
    exit_with(bad_input_in_one_line(main), reader_gone=DONE)


def bad_input_in_one_line(
    main: Callable[Parameters, int | None],
) -> Callable[Parameters, int]:
    """Make a command answer bad input (ValueError, OSError) with one line and status 2."""

    @functools.wraps(main)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> int:
        try:
            return main(*arguments, **options) or DONE
        except BrokenPipeError:  # an OSError that says nothing of the input: the reader has gone
            raise
        except (ValueError, OSError) as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return BAD_INPUT

    return run


def exit_with(main: Callable[[], int | None], *, reader_gone: int = RESUMABLE) -> NoReturn:
    """Run a command line and exit with the status that it returns; None counts as done.

    What the encoding of the output lacks is printed as ``?``, and nothing where it is closed. An
    output that is full is one line and status 1.

    Args:
        main: the command line. Ctrl-C in it is one line and status 130.
        reader_gone: status if what reads the output (head, less) has closed it.
    """
    try:
        print_what_can_be()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = _status_of(main)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            print(f"standard output: {error}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = status or FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Python would complain once more when it closes the streams at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(nowhere, sys.stderr.fileno())
        sys.exit(reader_gone)
    sys.exit(status)


def _status_of(main: Callable[[], int | None]) -> int | str:
    """Return the status that a command ends with, also where it exits by itself, as from --help."""
    try:
        return main() or DONE
    except SystemExit as end:
        return DONE if end.code is None else end.code


def print_what_can_be() -> None:
    """Let the standard output print ``?`` for what its encoding lacks, instead of failing.

    Standard streams that were closed lead nowhere: a file that is opened would take their number.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error escapes such characters already
        sys.stdout.reconfigure(errors="replace")
