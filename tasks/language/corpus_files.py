"""Files on this machine as a corpus: plain text, JSON lines, Parquet; single, in folders, by glob.

One line of JSON, or one row of Parquet, is one document. Plain text becomes documents as
``documents`` says:

    files         each file is one, up to 1 MiB; a longer one is cut at line ends
    paragraphs    lines between blank lines, which are left out
    a number      a piece of at most this many bytes, cut at line ends

Where a file is cut into parts depends only on the file: JSON lines and long text at the first line
after each multiple of ``PART_BYTES``, Parquet between row groups. A compressed file is read from
its start and stays in one part.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.base.data_files import cache_folder, expand_user
from tasks.base.options import OptionError, nearest
from tasks.base.storage import sha256_of_file, write_atomically
from tasks.language.documents import Corpus, Document, Part, grouped_by_size
from tasks.language.folders import Walk
from tasks.language.formats import (
    DAMAGES,
    JSON_LINES,
    PARQUET,
    TEXT,
    decompressed,
    describe_formats,
    format_of,
    open_parquet,
    read_json_lines,
    read_parquet,
    read_text,
)

logger = logging.getLogger(__name__)

PART_BYTES = 32 << 20
LEAST_DOCUMENT = 8
"""Fewest bytes of a piece: room for a character of any length."""
DOCUMENT_BYTES = 1 << 20
"""Longest text that is one document, unless a number says otherwise."""
REMEMBERED_BYTES = 64 << 20
"""Size from which a file's SHA-256 is kept in the cache, for as long as the file is unchanged."""

Documents = Literal["files", "paragraphs"] | int
"""How plain text becomes documents; see above."""


@dataclass(frozen=True)
class Slice:
    """A file, or a piece of one."""

    path: str
    kind: str
    compression: str
    start: int = 0
    end: int | None = None
    row_groups: tuple[int, ...] | None = None

    def documents(self, text_field: str, documents: Documents) -> Iterator[Document]:
        """Yield the documents of the piece.

        Raises:
            ValueError: the file is damaged, or a document cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                if self.kind == PARQUET:
                    yield from read_parquet(file, self.path, text_field, self.row_groups)
                    return
                stream = decompressed(file, self.compression)
                if self.kind == TEXT:
                    yield from read_text(
                        stream,
                        self.path,
                        documents if isinstance(documents, int) else DOCUMENT_BYTES,
                        self.start,
                        self.end,
                        paragraphs=documents == "paragraphs",
                    )
                else:
                    yield from read_json_lines(stream, self.path, text_field, self.start, self.end)
        except DAMAGES as error:
            what = f"damaged {self.compression} file" if self.compression else "cannot be read"
            raise ValueError(f"{self.path}: {what}: {error}") from None


@dataclass(frozen=True)
class FilePart(Part):
    """Some files, or a piece of one."""

    name: str
    slices: tuple[Slice, ...]
    text_field: str = "text"
    what: Documents = "files"
    """How plain text becomes documents."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents of each piece, in order."""
        for piece in self.slices:
            yield from piece.documents(self.text_field, self.what)


class Files(Corpus):
    """Files, folders and globs, in the order given; within a folder or a glob sorted by path.

    Args:
        entries: A folder gives every file below it of a known suffix, hidden ones left out. A glob
            whose last part ends with a suffix, as ``src/**/*.py``, reads what it matches as plain
            text where the suffix is not a known one.
        text_field: Field of JSON lines or column of Parquet that holds the text.
        documents: How plain text becomes documents.

    Raises:
        OptionError: no entries, or pieces of too few bytes.
    """

    name = "files"

    def __init__(
        self,
        entries: Sequence[str],
        text_field: str = "text",
        documents: Documents = "files",
    ) -> None:
        if not entries:
            raise OptionError("task.files", [], "corpus 'files' needs at least one file or folder")
        if isinstance(documents, int) and not LEAST_DOCUMENT <= documents <= DOCUMENT_BYTES:
            raise OptionError(
                "task.documents",
                documents,
                "must be files, paragraphs or a number of bytes from "
                f"{LEAST_DOCUMENT} to {DOCUMENT_BYTES}",
            )
        self.entries, self.text_field, self.what = list(entries), text_field, documents

    def files(self) -> dict[Path, tuple[str, str]]:
        """Return every file in order, with its format and compression; each real file once.

        Raises:
            OptionError: an entry that is missing, not readable or of an unknown format, or nothing
                to read.
        """
        return self._find(Walk())

    def _find(self, walk: Walk) -> dict[Path, tuple[str, str]]:
        found: dict[Path, tuple[str, str]] = {}
        for entry in self.entries:
            try:
                found |= {path.absolute(): kind for path, kind in _resolve(entry, walk)}
            except OSError as error:
                expected = f"cannot be read: {error.strerror}: {error.filename}"
                raise OptionError("task.files", entry, expected) from error
        if not any(path.stat().st_size for path in found):
            expected = "the corpus is empty: no bytes in them"
            raise OptionError("task.files", self.entries, expected)
        return found

    def parts(self) -> list[Part]:
        """Return runs of small files, and pieces of large ones, of about ``PART_BYTES``.

        What the walk over folders passes over is logged.
        """
        pieces: list[tuple[int, Slice]] = []
        walk = Walk()
        for path, (kind, compression) in self._find(walk).items():
            pieces += _slices(path, kind, compression)
        if walk.passed_over:
            logger.warning("task.files: passed over: %s", walk.summary())
        groups = grouped_by_size([size for size, _ in pieces], PART_BYTES)
        return [
            FilePart(
                f"files-{number:05d}",
                tuple(pieces[index][1] for index in group),
                self.text_field,
                self.what,
            )
            for number, group in enumerate(groups)
        ]

    def facts(self) -> dict[str, str]:
        """Return how many files there are, and what the walk to them passes over."""
        walk = Walk()
        count = f"{len(self._find(walk)):,}"
        return {"files": f"{count}; passed over: {walk.summary() or 'nothing'}"}

    def fingerprint(self) -> dict[str, Any]:
        """Return number, size and SHA-256 of the files in order, and nothing of where they lie."""
        files = self.files()
        digest, size = hashlib.sha256(), 0
        for path, (kind, compression) in files.items():
            size += path.stat().st_size
            digest.update(f"{remembered_sha256(path)}  {kind}{compression}\n".encode())
        return {
            "corpus": self.name,
            "files": len(files),
            "bytes": size,
            "sha256": digest.hexdigest(),
            "text_field": self.text_field,
            "documents": self.what,
            "part_bytes": PART_BYTES,
        }


def _resolve(entry: str, walk: Walk) -> list[tuple[Path, tuple[str, str]]]:
    """Return the files that one entry of ``task.files`` names, in order, but those of before."""
    path = expand_user(entry, "task.files")
    if path.is_dir():
        found, is_text = walk.files(path), False
        expected = f"no file to read there; expected {describe_formats()}"
    elif path.is_file():
        return [(file, _format_of_one(entry, file)) for file in walk.new([path])]
    elif glob.has_magic(entry):
        suffix = Path(entry).suffix
        found, is_text = walk.matching(str(path)), bool(suffix) and not glob.has_magic(suffix)
        expected = f"matches no file to read; expected {describe_formats()}"
    elif path.parent.is_dir():
        raise OptionError("task.files", entry, f"no such file or folder{_nearest_sibling(path)}")
    else:
        expected = f"no folder {str(path.parent)!r}{_nearest_sibling(path.parent)}"
        raise OptionError("task.files", entry, expected)
    kinds = {file: format_of(file.name) or ((TEXT, "") if is_text else None) for file in found}
    kept = walk.choose(found, lambda file: kinds[file] is not None)
    if not kept:
        raise OptionError("task.files", entry, expected)
    return [(file, kind) for file in walk.new(kept) if (kind := kinds[file]) is not None]


def _format_of_one(entry: str, path: Path) -> tuple[str, str]:
    """Return the format and the compression of a file that an entry names.

    Raises:
        OptionError: its suffix says none.
    """
    kind = format_of(path.name)
    if kind is None:
        raise OptionError(
            "task.files",
            entry,
            f"unknown format; expected {describe_formats()}, or a pattern such as "
            f"'*{path.suffix or '.py'}', which reads any suffix as plain text",
        )
    return kind


def _nearest_sibling(path: Path) -> str:
    parent = path.parent
    return nearest(path.name, os.listdir(parent)) if parent.is_dir() else ""


def _slices(path: Path, kind: str, compression: str) -> list[tuple[int, Slice]]:
    """Return the pieces of a file with their sizes."""
    size = path.stat().st_size
    if compression or size <= PART_BYTES:
        return [(size, Slice(str(path), kind, compression))]
    if kind in (TEXT, JSON_LINES):
        starts = range(0, size, PART_BYTES)
        return [
            (PART_BYTES, Slice(str(path), kind, "", start, min(start + PART_BYTES, size)))
            for start in starts
        ]
    with open(path, "rb") as file:
        metadata = open_parquet(file, str(path)).metadata
        sizes = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    return [
        (sum(sizes[n] for n in group), Slice(str(path), kind, "", row_groups=tuple(group)))
        for group in grouped_by_size(sizes, PART_BYTES)
    ]


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file (0.6 GB/s); that of a large one is kept in the cache folder."""
    status = path.stat()
    key = f"{path.absolute()}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ino}"
    memory = cache_folder() / "sha256" / hashlib.sha256(os.fsencode(key)).hexdigest()
    if status.st_size >= REMEMBERED_BYTES and memory.is_file():
        return memory.read_text(encoding="utf-8")
    digest = sha256_of_file(path)
    if status.st_size >= REMEMBERED_BYTES:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, digest, durable=False)
    return digest
