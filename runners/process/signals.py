"""A stop by signal: the run finishes its step, saves, and ends with a status that says so."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType

from tasks.base.command_line import INTERRUPTED, RESUMABLE

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """A run has ended before its end, on request, and can go on from its last checkpoint."""


class Stop:
    """Tell whether a stop was asked for, by a signal while the context lasts or by ``request``.

    Further signals change nothing: the first one is being answered. The handlers that were there
    before come back at the end, unless ``restore`` is false: torchrun sends SIGTERM to the ranks
    that are still leaving when the first has left.
    """

    def __init__(self, *, announce: bool = False, restore: bool = True) -> None:
        self._event = threading.Event()
        self._announce = announce
        self._restore = restore
        self._adopted: int | None = None
        self._previous: dict[int, object] = {}
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    @property
    def exit_status(self) -> int:
        """Exit status after a stop: 130 for Ctrl-C, 75 for everything else."""
        if self._adopted is not None:
            return self._adopted
        return INTERRUPTED if self.signal == signal.SIGINT else RESUMABLE

    def request(self) -> None:
        """Ask for a stop."""
        self._event.set()

    def adopt(self, status: int) -> None:
        """Take up a stop that the ranks have agreed on, with its exit status."""
        self._adopted = status
        self._event.set()

    def __enter__(self) -> Stop:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._restore:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            if self._announce:
                name = signal.Signals(number).name
                sys.stderr.write(f"\n{name}: finishing the step and saving\n")
        self._event.set()
