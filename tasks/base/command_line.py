"""What all commands share: errors of one line, and exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

BAD_INPUT = 2
"""Exit status for input that is wrong, or data that is missing."""
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        sys.exit(BAD_INPUT)


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
