"""Checksums of files that nobody published one of, noted beside them: ``<name>.sha256``.

``tasks.fetch`` notes that of a file which it takes out of an archive with the published checksum. A
file that somebody put there is noted when it is first read, with a line that says so: no one can
know whether it is the published one, but from then on it stays the same.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from tasks.base.storage import write_atomically


def pin_of(path: Path) -> Path:
    """Return where the checksum of a file is noted."""
    return path.with_name(f"{path.name}.sha256")


def write_pin(path: Path, sha256: str) -> None:
    """Note the SHA-256 of a file.

    Raises:
        OSError: its folder is not writable.
    """
    write_atomically(pin_of(path), f"{sha256}  {path.name}\n", durable=False)


def read_pin(path: Path) -> str | None:
    """Return the SHA-256 that was noted of a file; None: none was."""
    try:
        return pin_of(path).read_text(encoding="utf-8").partition(" ")[0].strip()
    except FileNotFoundError:
        return None


def pinned(path: Path, sha256: str) -> str:
    """Return the SHA-256 that was noted of a file; where none was, note the one it has."""
    noted = read_pin(path)
    if noted is not None:
        return noted
    with contextlib.suppress(OSError):  # a folder that is read alone keeps none
        write_pin(path, sha256)
    from tasks.base.console import PlainConsole, say  # which most runs read their data without

    say(
        PlainConsole(stderr=True),
        f"{path}: not fetched by tasks.fetch, and no SHA-256 of it is published; read unchecked "
        f"and noted: {sha256}",
    )
    return sha256
