"""Shared by all command lines: one line for wrong arguments, and for wrong input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tasks.base.exit_status import BAD_INPUT, DONE, bad_input_in_one_line, exit_with


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
