"""A lock on a directory, which a killed process cannot leave behind."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)


class Locked(RuntimeError):
    """Another process works on the directory."""


class DirectoryLock:
    """Hold ``directory/.lock`` while the context lasts.

    The file names the holder (process and host). The kernel frees the lock of a process that dies,
    so a stale file is taken over, with a word in the log. File systems shared between hosts may not
    carry the lock across: a file that another host has left is therefore refused.

    Args:
        directory: what is locked; must exist.
        wait: seconds to wait for a holder that is just ending.

    Raises:
        Locked: on entry, if another process holds the lock.
    """

    def __init__(self, directory: Path, *, wait: float = 0.0) -> None:
        self.path = directory / ".lock"
        self._wait = wait
        self._descriptor = -1

    def __enter__(self) -> DirectoryLock:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self._wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = _read(descriptor)
                    os.close(descriptor)
                    raise Locked(
                        f"{self.path}: in use by process {holder.get('pid', 'unknown')} on "
                        f"{holder.get('host', 'unknown')}; wait for it or stop it"
                    ) from None
                time.sleep(0.1)
        holder = _read(descriptor)
        here = socket.gethostname()
        if holder and holder.get("host") != here:
            os.close(descriptor)
            raise Locked(
                f"{self.path}: left by process {holder.get('pid')} on {holder.get('host')}, and "
                f"this is {here}; remove the file if that process has ended"
            )
        if holder:
            logger.info("%s: taken over from process %s, which has ended", self.path, holder["pid"])
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": here}).encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Emptied, not removed: removal would let two processes lock two files of one name.
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = -1


def holder(directory: Path) -> str | None:
    """Return who holds the lock of a directory, ``process 7 on host``, or None if nobody does.

    A file that another host has left counts as held, as it does for whoever wants the lock.
    """
    try:
        descriptor = os.open(directory / ".lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        named = _read(descriptor)
        try:
            # Shared, so that two readers do not see each other, and gone again at once.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_held = bool(named) and named.get("host") != socket.gethostname()
        except BlockingIOError:
            is_held = True
    finally:
        os.close(descriptor)
    return f"process {named.get('pid')} on {named.get('host')}" if is_held else None


def _read(descriptor: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {"pid": "unknown", "host": socket.gethostname()}
    return content if isinstance(content, dict) else {}
