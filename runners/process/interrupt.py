"""Ctrl-C in the seconds in which a command imports what it needs: one line, no traceback.

A command's module calls ``end_at_interrupt`` between this import and its others, if it is what
Python was started with. This module imports next to nothing itself, so that it comes first.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def end_at_interrupt() -> None:
    """Let Ctrl-C end the process at once, until ``exit_with`` sets Python's own answer again.

    There is nothing to save yet, and Python's answer would be a traceback through the modules of
    others. A Ctrl-C that is ignored, as under nohup, stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
