"""Files and folders that appear only when whole, their checksums, and the lock on a data folder.

Content gathers under a hidden name beside its goal, ``.<name>.<process>``, and takes its name in
one step: a reader sees the old content or the new, never a part. A write that fails leaves nothing
behind; a process that is killed leaves its hidden file, which no other one mistakes for its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tasks.base.lease import Lease


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write text, as UTF-8, or bytes to a file that appears, or is replaced, only when whole.

    Args:
        path: the file; its folder must exist.
        content: all of it.
        durable: bring the bytes to the disk before the file takes its name, so that not even a
            loss of power leaves an empty file. It costs milliseconds.

    Raises:
        OSError: the folder is missing, not writable or full; nothing is left behind.
    """
    with open_atomically(path, durable=durable) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write ``json_text`` of plain data, as ``write_atomically`` writes text.

    Raises:
        OSError: as ``write_atomically``.
        TypeError: the content is not plain data.
    """
    write_atomically(path, json_text(content), durable=durable)


def json_text(content: Any) -> str:
    """Return plain data as JSON, indented by one.

    Raises:
        TypeError: the content is not plain data.
    """
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def open_atomically(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Give a binary stream whose file appears, or is replaced, when the context ends well.

    Args:
        path: the file; its folder must exist.
        durable: as in ``write_atomically``.

    Raises:
        OSError: as ``write_atomically``.
    """
    temporary = _hidden(path)
    stream = open(temporary, "wb")  # noqa: SIM115 (closed below)
    try:
        yield stream
        if durable:
            stream.flush()
            flush(stream.fileno())
        stream.close()
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # on a full disk closing fails too, and hides why
            stream.close()
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def make_folder_atomically(path: Path) -> Iterator[Path]:
    """Give an empty folder that takes its name when the context ends well.

    A folder of that name is replaced; the one above is made if it is missing. The files inside are
    brought to the disk by whoever writes them.

    Raises:
        OSError: the disk is full or not writable; the folder of before is untouched.
    """
    temporary, replaced = _hidden(path), _hidden(path.with_name(f"{path.name}.replaced"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        # A folder with content cannot be renamed over: for a moment there is none of that name.
        if path.exists():
            _move_away(path, replaced)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _move_away(path: Path, goal: Path) -> None:
    try:
        os.rename(path, goal)
    except OSError as error:
        # In a container, a folder of the image below cannot be renamed (overlayfs: EXDEV).
        if error.errno not in (errno.EXDEV, *_LACKING):
            raise
        shutil.rmtree(path)


_LACKING = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems answer to an operation that they do not have."""


def why_not_written(error: OSError) -> str:
    """Return what an error of a write says, and what to do about it where that is known."""
    if error.errno in (errno.EXDEV, *_LACKING):
        remedy = "the file system lacks an operation that is needed here"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "it may not be written to"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error}; make room, and the same command continues"
    elif error.errno == errno.ESTALE:
        return (
            f"{error}; the file server has replaced the folder: enter it anew by cd or mount it "
            "again, and the same command continues"
        )
    else:
        return f"{error}; the same command tries again"
    return f"{error}; {remedy}: name another place, for runs by --runs-dir, for data by MOEUT_CACHE"


def flush(descriptor: int) -> None:
    """Bring a file to the disk, where its file system can be asked to.

    Raises:
        OSError: it could not be written.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *_LACKING):  # EINVAL: such files know no fsync
            raise


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: which files it has, under which names.

    Some network and FUSE file systems cannot be asked to; then they do it in their own time.

    Raises:
        OSError: there is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EISDIR, errno.EINVAL, *_LACKING):
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, *_LACKING):
            raise
    finally:
        os.close(descriptor)


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def git_sha1_of(data: bytes) -> str:
    """Return the name that Git gives to a file of some bytes, in hexadecimal.

    It is part of every tree that Git stores, and so is known of files that were never seen.
    """
    header = f"blob {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal, without holding all of it in memory.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a data folder while the context lasts; wait for the process that holds it.

    The folder need not exist yet: its lease lies beside it, in ``.<name>.lock``. A process that
    dies holds up nobody.

    Raises:
        OSError: the folder above cannot be made or written to.
    """
    beside = folder.with_name(f".{folder.name}.lock")
    beside.mkdir(parents=True, exist_ok=True)
    with Lease(beside, wait=math.inf):
        yield


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
