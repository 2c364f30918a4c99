"""Files that appear, or are replaced, only when whole."""

from __future__ import annotations

import contextlib
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
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
