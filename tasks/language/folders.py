"""What lies below a folder, linked folders included, each real folder once; and what is left out.

Links are followed after all that is there without them, so that a link back to a folder that was
entered adds nothing, and a circle of links ends.
"""

from __future__ import annotations

import collections
import fnmatch
import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN = "hidden"
TWICE = "linked to what was read already"
BROKEN = "broken links"
OTHER = "neither files nor folders"


@dataclass
class Walk:
    """A walk over folders, which remembers where it has been and counts what it passes over."""

    passed_over: collections.Counter[str] = field(default_factory=collections.Counter)
    """Why → how many files and folders."""
    _seen: set[str] = field(default_factory=set)
    """Real paths of the files that were given."""

    def files(self, folder: Path) -> list[Path]:
        """Return every file below a folder but the hidden ones, sorted by path.

        Raises:
            OSError: a folder cannot be read.
        """
        return sorted(file for below in self._folders(folder) for file in self._files_in(below))

    def matching(self, pattern: str) -> list[Path]:
        """Return the files that a glob pattern matches, sorted; ``**`` is any number of folders.

        Raises:
            OSError: a folder cannot be read.
        """
        parts = Path(pattern).parts
        literal = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        return sorted(set(self._expand(Path(*parts[:literal]), parts[literal:])))

    def new(self, files: list[Path]) -> list[Path]:
        """Return the files, in their order, whose real file no call has returned before.

        Of two paths of one real file the one that is no link is kept.
        """
        kept = set()
        for path in sorted(files, key=lambda path: (path.is_symlink(), path)):
            real = os.path.realpath(path)
            if real not in self._seen:
                self._seen.add(real)
                kept.add(path)
            elif path.is_symlink():
                self.passed_over[TWICE] += 1
        return [path for path in files if path in kept]

    def choose(self, files: list[Path], keep: Callable[[Path], bool]) -> list[Path]:
        """Return the files to keep, and count the others by their suffix."""
        for path in files:
            if not keep(path):
                self.passed_over[f"of another format ({path.suffix or 'no suffix'})"] += 1
        return [path for path in files if keep(path)]

    def summary(self) -> str:
        """Return what was passed over in words; empty where nothing was."""
        return ", ".join(f"{count:,} {why}" for why, count in sorted(self.passed_over.items()))

    def _expand(self, folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        """Yield the files below a folder whose parts match those of a pattern."""
        first, rest = parts[0], parts[1:]
        if first == "**":
            for below in self._folders(folder):
                if rest:
                    yield from self._expand(below, rest)
                else:
                    yield from self._files_in(below)
            return
        for path in _matches(folder, first):
            if rest and path.is_dir():
                yield from self._expand(path, rest)
            elif not rest and path.is_file():
                yield path

    def _folders(self, top: Path) -> Iterator[Path]:
        """Yield a folder and every one below it, each real one once."""
        waiting, links = [top], list[Path]()
        seen: set[str] = set()
        while waiting or links:
            folder = waiting.pop(0) if waiting else links.pop(0)
            real = os.path.realpath(folder)
            if real in seen:
                self.passed_over[TWICE] += 1
                continue
            seen.add(real)
            yield folder
            for entry in _entries(folder):
                if not entry.name.startswith(".") and entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(Path(entry.path))

    def _files_in(self, folder: Path) -> Iterator[Path]:
        """Yield the files of one folder, and count what else is there."""
        for entry in _entries(folder):
            if entry.name.startswith("."):
                self.passed_over[HIDDEN] += 1
            elif entry.is_file():
                yield Path(entry.path)
            elif not entry.is_dir():
                self.passed_over[BROKEN if entry.is_symlink() else OTHER] += 1


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _matches(folder: Path, part: str) -> list[Path]:
    """Return what lies in a folder under one part of a pattern; hidden only where it begins so."""
    if not glob.has_magic(part):
        path = folder / part
        return [path] if path.exists() else []
    if not folder.is_dir():
        return []
    names = [entry.name for entry in _entries(folder)]
    return [
        folder / name
        for name in fnmatch.filter(names, part)
        if part.startswith(".") or not name.startswith(".")
    ]
