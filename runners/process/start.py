"""What a command does before it imports anything that takes long: this module imports little.

A command's module calls ``begin`` between this import and its others, if it is what Python was
started with. Ctrl-C in the seconds in which torch is imported is then one line, no traceback, and
``--help`` does not import it. Of several ranks one alone says what is wrong with the command line.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from types import FrameType

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment that torchrun gives each of its processes."""


def begin() -> None:
    """Prepare a command for what it imports."""
    end_at_interrupt()
    if {"-h", "--help"} & set(sys.argv[1:]):
        from runners.process.stand_in import leave_torch_out

        leave_torch_out()


def end_at_interrupt() -> None:
    """Let Ctrl-C end the process at once, until ``exit_with`` sets Python's own answer again.

    There is nothing to save yet, and Python's answer would be a traceback through the modules of
    others. A Ctrl-C that is ignored, as under nohup, stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C end the process at once while the context imports torch and its like.

    An interrupt in the middle of an import leaves packages behind that fail later in their own
    ways: NumPy then calls itself until the stack is full.
    """
    before = signal.getsignal(signal.SIGINT)
    end_at_interrupt()
    collects = gc.isenabled()
    gc.disable()  # imports leave hardly any garbage, and looking for it takes a sixth of their time
    try:
        yield
    finally:
        if collects:
            gc.enable()
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is one of several that torchrun has started."""
    return all(name in environment for name in VARIABLES) and int(environment["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def silent_but_first() -> Iterator[None]:
    """Let rank 0 alone print, so that what every rank has to say is said once."""
    if not is_launched() or int(os.environ["RANK"]) == 0:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
