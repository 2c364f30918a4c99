"""The running Python's standard library: a corpus of code that every machine has.

It takes the ``.py`` files below the library's folder. It leaves out ``site-packages`` and its kin
(not the library), every folder of tests (``test``, ``tests``, ``idle_test``: over half of the bytes
where they are there, and many distributions ship without them), and the files that the build writes
anew on each machine (``_sysconfigdata…``, ``config-…``, ``sitecustomize``).

The text differs between Python versions, so the fingerprint names the version and the content.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.language.documents import Corpus, Document, Part, grouped_by_size
from tasks.language.formats import whole_text

LEFT_OUT_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
)
LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")
PART_BYTES = 1 << 20


@dataclass(frozen=True)
class SourcePart(Part):
    """Some source files, each one document."""

    name: str
    folder: Path
    files: tuple[str, ...]
    """Paths below the folder, with forward slashes."""

    def documents(self) -> Iterator[Document]:
        """Yield each file's text, decoded as its first lines declare (PEP 263), else as UTF-8.

        Raises:
            ValueError: a file cannot be decoded.
        """
        for file in self.files:
            data = (self.folder / file).read_bytes()
            try:
                encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
                text = whole_text(data.decode(encoding))
            except (SyntaxError, LookupError, UnicodeError) as error:
                raise ValueError(f"{self.folder / file}: not Python source: {error}") from None
            if text:
                yield Document(text, file)


@dataclass
class StandardLibrary(Corpus):
    """The source files of a Python's standard library, one document each, sorted by path."""

    folder: Path | None = None
    """The library's folder; that of the running Python by default."""

    name = "stdlib"

    def files(self) -> list[str]:
        """Return the source files' paths below the folder, sorted, with forward slashes.

        Raises:
            ValueError: there are none, for instance where the library is a zip file.
        """
        folder = self._folder()
        found = []
        for parent, folders, names in os.walk(folder):
            folders[:] = [
                name
                for name in folders
                if name not in LEFT_OUT_FOLDERS and not name.startswith(LEFT_OUT_PREFIXES)
            ]
            found += [
                (Path(parent) / name).relative_to(folder).as_posix()
                for name in names
                if name.endswith(".py") and not name.startswith(LEFT_OUT_PREFIXES)
            ]
        if not found:
            raise ValueError(f"{folder}: no source files of the standard library there")
        return sorted(found)

    def parts(self) -> list[Part]:
        """Return runs of files of about a megabyte."""
        folder, files = self._folder(), self.files()
        groups = grouped_by_size([(folder / file).stat().st_size for file in files], PART_BYTES)
        return [
            SourcePart(f"stdlib-{number:03d}", folder, tuple(files[index] for index in group))
            for number, group in enumerate(groups)
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Return the Python version, and count, size and SHA-256 of the files (14 MB: 0.1 s)."""
        folder, files = self._folder(), self.files()
        digest, size = hashlib.sha256(), 0
        for file in files:
            data = (folder / file).read_bytes()
            size += len(data)
            digest.update(f"{hashlib.sha256(data).hexdigest()}  {file}\n".encode())
        return {
            "corpus": self.name,
            "python": platform.python_version(),
            "files": len(files),
            "bytes": size,
            "sha256": digest.hexdigest(),
        }

    def _folder(self) -> Path:
        return self.folder if self.folder is not None else Path(sysconfig.get_path("stdlib"))
