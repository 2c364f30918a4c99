"""A directory has one worker at a time: a lease with a heartbeat, which no dead holder keeps.

**Where it stands.** ``DIRECTORY/.lease/`` holds files that are numbered from 1. The highest number
is the lease; what it says is who holds it, how many times that process has renewed it, and whether
it has given it back. While it works, a thread of the holder renews the file every few seconds.

**Who may take it.** Whoever finds no file, or finds the highest one free, makes the next number
with O_EXCL, so that of several processes one succeeds. A lease is free if

* its holder has given it back;
* its holder was a process of this machine, since this start of it, and has ended: at once;
* its content has not changed for ``stale`` seconds: its holder was killed on another machine, lost
  the file system, or is suspended. Only the waiting process's own monotonic clock is read, so that
  clocks may differ; time in which it could not look does not count.

A holder that is seen to live is waited for no longer than the caller wants (``Locked``).

**Why one at a time.** The highest file is never removed: a new holder removes the lower, lowest
first. So a number whose turn has passed may be made again by a process that looked long ago, but
that process then finds a higher one, removes its own and looks anew. A holder has the lease as long
as no file has the next number *and* its own is there with its id. In this order the two looks prove
that it held the lease at the first: a successor's file is removed only after the holder's own.

**What is left.** Between a look and the write that it permits, a process may be suspended until it
counts as gone; then two would write. The look stands directly before each write that matters
(``confirm``), so that the gap is microseconds, against ``stale`` seconds to be suspended in. What a
holder finds taken it does not touch again (``Lost``).

Nothing relies on flock, links, inode times, synchronous clocks or rename across folders. A renewal
overwrites the file in place, without O_CREAT: it cannot bring back what a successor has removed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tasks.base.owner import Owner

logger = logging.getLogger(__name__)

FOLDER = ".lease"
HEARTBEAT_SECONDS = 5.0
"""Time between two renewals."""
STALE_SECONDS = 60.0
"""Time without a renewal after which a holder counts as gone, if it is not known to have ended."""
SHOWN_SECONDS = 600.0
"""Age, by the wall clocks, up to which another machine's lease is shown as held."""
CHECK_SECONDS = 1.0
"""Time for which ``is_held`` relies on its last look."""
POLL_SECONDS = 0.2
_SIZE = 1024
"""Bytes of a lease file: always as many, so that a renewal overwrites all of the one before."""

_clock = (
    (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))  # goes on while the machine sleeps
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)


class Locked(RuntimeError):
    """Another process works on the directory; the same command may be given again later."""


class Lost(Exception):
    """Another process has taken the directory over, since this one gave no sign of life."""


class Lease:
    """Hold the lease of a directory while the context lasts.

    Args:
        directory: what is held; must exist.
        wait: seconds to wait for a holder that lives and may be just ending, or infinity. One that
            gives no sign of life is waited for until it counts as gone.
        say: gets a sentence if there is something to wait for, or was to take over.
        check: called while waiting; what it raises ends the waiting.
        heartbeat: seconds between two renewals.
        stale: seconds without a renewal after which a holder counts as gone.

    Raises:
        Locked: on entry, if another process holds the lease.
        OSError: on entry, if the directory is not there or cannot be written to.
    """

    def __init__(
        self,
        directory: Path,
        *,
        wait: float = 0.0,
        say: Callable[[str], None] = logger.info,
        check: Callable[[], None] = lambda: None,
        heartbeat: float = HEARTBEAT_SECONDS,
        stale: float = STALE_SECONDS,
    ) -> None:
        self.directory = directory
        self.folder = directory / FOLDER
        self._wait, self._heartbeat, self._stale = wait, heartbeat, stale
        self._say, self._check = say, check
        self._owner = Owner.here()
        self._number = 0
        self._beats = 0
        self._looked = 0.0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew_always, daemon=True)

    def __enter__(self) -> Lease:
        self.folder.mkdir(exist_ok=True)
        watch = _Watch(self._stale)
        deadline = time.monotonic() + self._wait
        is_announced = False
        while True:
            entry = _highest(self.folder)
            watch.look(entry)
            reason = _why_free(entry, watch)
            if reason is not None:
                if self._claim(0 if entry is None else entry.number):
                    if reason:
                        self._say(f"{self.directory}: taken over from {reason}")
                    break
                continue
            assert entry is not None
            is_alive = _is_alive(entry, watch)
            if is_alive and time.monotonic() >= deadline:
                raise Locked(f"{self.directory}: in use by {entry.holder}; wait for it or stop it")
            self._check()
            if not is_announced:
                is_announced = True
                what = "" if is_alive else f" for a sign of life from it, {self._stale:g} s at most"
                self._say(f"{self.directory}: in use by {entry.holder}; waiting{what}")
            time.sleep(min(POLL_SECONDS, self._heartbeat))
        self._looked = _clock()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if self._look():
                self._write(is_released=True)
        except OSError as problem:  # the next one waits until the lease counts as free
            logger.warning("%s: cannot be given back: %s", self.folder, problem)

    def is_held(self) -> bool:
        """Return whether the lease is still this process's; cheap enough to ask at every step.

        It may be a second out of date, but not after a longer pause of the process.
        """
        if not self._lost.is_set() and _clock() - self._looked > CHECK_SECONDS:
            try:
                self._look()
            except OSError as problem:
                logger.warning("%s: cannot be read: %s", self.folder, problem)
        return not self._lost.is_set()

    def confirm(self) -> None:
        """Look whether the lease is still this process's: what a write that matters begins with.

        Raises:
            Lost: it is not; nothing may be written any more.
            OSError: the file system does not say.
        """
        if not self._look():
            raise Lost(
                f"{self.directory}: taken over by another process, since this one gave no sign of "
                "life; nothing more was written"
            )

    def _claim(self, number: int) -> bool:
        """Make the file after this number, and return whether that made the lease ours."""
        path = self.folder / str(number + 1)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.pwrite(descriptor, self._content(is_released=False), 0)
        finally:
            os.close(descriptor)
        self._number = number + 1
        if any(other > self._number for other in _numbers(self.folder)):
            path.unlink(missing_ok=True)  # the number's turn had passed
            return False
        if not self._look():  # held up here for so long that another one has gone on
            self._lost.clear()
            return False
        for lower in _numbers(self.folder):
            if lower < self._number:
                (self.folder / str(lower)).unlink(missing_ok=True)
        return True

    def _look(self) -> bool:
        """Return whether the lease was ours when this was called; what is lost stays so."""
        self._looked = _clock()
        own = self.folder / str(self._number)
        # First the successor's, then our own: see the module's text.
        is_ours = not _exists(self.folder / str(self._number + 1)) and self._is_own(_read(own))
        if not is_ours:
            self._lost.set()
        return not self._lost.is_set()

    def _is_own(self, content: bytes | None) -> bool:
        owner = None if content is None else Owner.from_json(content)
        return owner is not None and owner.id == self._owner.id

    def _renew_always(self) -> None:
        has_failed = False
        while not self._ended.wait(self._heartbeat):
            try:
                if not self._look():
                    return
                self._write(is_released=False)
                has_failed = False
            except OSError as problem:
                if not has_failed:
                    logger.warning("%s: cannot be renewed: %s", self.folder, problem)
                has_failed = True

    def _write(self, *, is_released: bool) -> None:
        self._beats += 1
        try:
            # Opened and closed each time: NFS shows other machines what has been closed.
            descriptor = os.open(self.folder / str(self._number), os.O_WRONLY)
        except FileNotFoundError:  # taken over since the look
            return
        try:
            os.pwrite(descriptor, self._content(is_released=is_released), 0)
        finally:
            os.close(descriptor)

    def _content(self, *, is_released: bool) -> bytes:
        content = self._owner.to_dict() | {
            "beats": self._beats,
            "time": time.time(),
            "is_released": is_released,
        }
        return json.dumps(content).encode().ljust(_SIZE - 1) + b"\n"


def holder(directory: Path) -> str | None:
    """Return who holds the lease of a directory, ``process 7 on host``, or None if nobody does.

    For showing alone. Another machine's process counts as long as its last renewal is recent by the
    wall clocks, since a reader does not wait for the next one.
    """
    try:
        entry = _highest(directory / FOLDER)
    except OSError:
        return None
    if entry is None or entry.is_released or entry.owner is None or entry.owner.is_dead:
        return None
    if not entry.owner.is_local and time.time() - entry.time > SHOWN_SECONDS:
        return None
    return str(entry.owner)


# --- what lies in the folder --------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """The highest file of a folder as it was read."""

    number: int
    content: bytes

    @property
    def owner(self) -> Owner | None:
        """Whom it names; None for a file that is just being made, or torn."""
        return Owner.from_json(self.content)

    @property
    def holder(self) -> str:
        return str(self.owner or "a process that is not named yet")

    @property
    def is_released(self) -> bool:
        return self.owner is not None and bool(json.loads(self.content).get("is_released"))

    @property
    def time(self) -> float:
        """Wall clock of the holder at its last renewal."""
        value = json.loads(self.content).get("time") if self.owner else None
        return value if isinstance(value, int | float) else 0.0


class _Watch:
    """For how long a lease has not changed, as this process has seen it."""

    def __init__(self, stale: float) -> None:
        self.stale = stale
        self.silence = 0.0
        self.has_changed = False
        self._entry: _Entry | None = None
        self._time = time.monotonic()

    def look(self, entry: _Entry | None) -> None:
        """Take up what was read just now."""
        now = time.monotonic()
        if entry == self._entry:
            # What lies far from the look before was a pause of this process or of the file system,
            # in which no renewal could have been seen.
            self.silence += min(now - self._time, 2 * POLL_SECONDS)
        else:
            self.has_changed = self._entry is not None
            self.silence = 0.0
        self._entry, self._time = entry, now


def _why_free(entry: _Entry | None, watch: _Watch) -> str | None:
    """Return None for a lease that is held, "" for one that is free, or from whom it is taken."""
    if entry is None or entry.is_released:
        return ""
    if entry.owner is not None and entry.owner.is_dead:
        return f"{entry.holder}, which has ended"
    if watch.silence >= watch.stale:
        return f"{entry.holder}, which gave no sign of life for {watch.stale:g} s"
    return None


def _is_alive(entry: _Entry, watch: _Watch) -> bool:
    return watch.has_changed or (entry.owner is not None and entry.owner.is_running)


def _highest(folder: Path) -> _Entry | None:
    while True:
        numbers = _numbers(folder)
        if not numbers:
            return None
        content = _read(folder / str(numbers[-1]))
        if content is not None:
            return _Entry(numbers[-1], content)
        time.sleep(0.01)  # removed since it was listed: there is a higher one


def _numbers(folder: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())


def _read(path: Path) -> bytes | None:
    """Return the content of a file, or None if it is not there."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise
    return True
