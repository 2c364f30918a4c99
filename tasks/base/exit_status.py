"""How commands end: their exit statuses, and the wrapper that every command line runs in."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

DONE, FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
"""75 is EX_TEMPFAIL, on which batch systems try again; 130 is what shells give to Ctrl-C."""


Parameters = ParamSpec("Parameters")


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

    Args:
        main: the command line. Ctrl-C in it is one line and status 130.
        reader_gone: status if what reads the output (head, less) has closed it.
    """
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Python would complain once more when it closes the stream at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(reader_gone)
    sys.exit(DONE if status is None else status)
