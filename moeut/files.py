"""Files that appear, or are replaced, only when whole."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes to a file that appears, or is replaced, only when whole.

    Raises:
        OSError: the folder is missing, not writable or full; nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, whose file takes the name ``path`` when the context ends well.

    The bytes reach the disk before the file takes its name, so that not even a loss of power leaves
    half of it.

    Raises:
        OSError: the folder is missing, not writable or full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            _flush(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(descriptor: int) -> None:
    """Bring a file to the disk, where its file system can be asked to."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
