"""Token shards: flat files of ids with an index, memory-mapped and protected by checksums.

A split is a folder of shards, read as one stream in the order of the index:

    train/00000.tokens     ids, little-endian uint16 or uint32, one after another
    train/00000.offsets    where in the shard the text of each document begins, uint64

The index names each file with its SHA-256, and the tokens, documents and bytes of text of each
shard. Opening compares every file's size with the index, and its checksum unless the file is known
to be whole: ``verified.json`` notes size and time of change of every file that was hashed, so that
the next process opens without reading. A file that was changed since is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from tasks.base.data_files import DataDamaged
from tasks.base.storage import open_atomically, sha256_of_file, write_json

OFFSET_TYPE = np.dtype("<u8")
VERIFIED = "verified.json"


@dataclass(frozen=True)
class Shard:
    """One line of an index."""

    name: str
    """Path of the files without suffix, relative to the prepared folder, with forward slashes."""
    tokens: int
    documents: int
    bytes: int
    """UTF-8 bytes of the documents' text."""
    tokens_sha256: str
    offsets_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the line as plain data."""
        return asdict(self)


def token_type(vocabulary_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds every id."""
    return np.dtype("<u2") if vocabulary_size <= 1 << 16 else np.dtype("<u4")


class _Hashed:
    """A stream that is hashed as it is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def sha256(self) -> str:
        return self._digest.hexdigest()


class ShardWriter:
    """Write one shard, document by document; its files appear when the context ends well.

    Args:
        root: the prepared folder.
        name: the shard's path under it, without suffix.
        dtype: the ids' type.
        first: ids that stand before the first document, such as the first boundary.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """

    def __init__(
        self, root: Path, name: str, dtype: np.dtype[Any], first: Sequence[int] = ()
    ) -> None:
        self.name = name
        self.shard: Shard | None = None
        """The index line, once the files are whole."""
        self._dtype = dtype
        self._tokens = self._documents = self._bytes = 0
        self._goal = root / name
        self._first = np.asarray(first, dtype=dtype)
        self._files = contextlib.ExitStack()

    def _write(self, ids: np.ndarray) -> None:
        self._tokens_file.write(ids.tobytes())
        self._tokens += len(ids)

    def add(self, ids: Sequence[int] | np.ndarray, num_bytes: int) -> None:
        """Append the ids of one document with its boundary, (length,), and its bytes of text."""
        self._offsets_file.write(np.array(self._tokens, OFFSET_TYPE).tobytes())
        self._write(np.asarray(ids, dtype=self._dtype))
        self._documents += 1
        self._bytes += num_bytes

    def __enter__(self) -> ShardWriter:
        self._goal.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            self._tokens_file = _Hashed(opened.enter_context(self._open(".tokens")))
            self._offsets_file = _Hashed(opened.enter_context(self._open(".offsets")))
            self._write(self._first)
            self._files = opened.pop_all()
        return self

    def _open(self, suffix: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return open_atomically(self._goal.with_name(self._goal.name + suffix))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, traceback)
        if kind is None:
            self.shard = Shard(
                self.name,
                self._tokens,
                self._documents,
                self._bytes,
                self._tokens_file.sha256(),
                self._offsets_file.sha256(),
            )


def _state(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _files(shards: Sequence[Shard], dtype: np.dtype[Any]) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of every file that an index names."""
    files = {}
    for shard in shards:
        files[f"{shard.name}.tokens"] = (shard.tokens * dtype.itemsize, shard.tokens_sha256)
        files[f"{shard.name}.offsets"] = (
            shard.documents * OFFSET_TYPE.itemsize,
            shard.offsets_sha256,
        )
    return files


def check_files(
    root: Path, shards: Sequence[Shard], dtype: np.dtype[Any], *, thorough: bool = False
) -> int:
    """Compare the files of an index with their sizes and checksums; return how many were read.

    A file that an earlier check found whole, and that has kept its size and time of change, is not
    read again unless the check is ``thorough``.

    Raises:
        DataDamaged: a file is missing, has another length, or another checksum.
    """
    note = root / VERIFIED
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    found: dict[str, list[int]] = {}
    for name, (size, expected) in _files(shards, dtype).items():
        path = root / name
        remedy = f"remove {root} and prepare the data again"
        try:
            state = _state(path)
        except FileNotFoundError:
            raise DataDamaged(f"{path}: missing, though the data was prepared; {remedy}") from None
        if state[0] != size:
            raise DataDamaged(f"{path}: {state[0]} bytes, expected {size}; {remedy}")
        if not thorough and known.get(name) == state:
            continue
        if sha256_of_file(path) != expected:
            raise DataDamaged(f"{path}: changed since it was prepared (checksum); {remedy}")
        found[name] = state
    if found:
        with contextlib.suppress(OSError):  # a folder that only others may write to
            write_json(note, {**known, **found})
    return len(found)


def map_array(path: Path, dtype: np.dtype[Any], length: int) -> np.ndarray:
    """Return a file as a read-only memory-mapped array, (length,) of ``dtype``."""
    if not length:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
