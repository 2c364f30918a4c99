"""Official data files: where they lie, and the checksum without which they are not read.

A file is looked for under ``$MOEUT_DATA`` first and then in the cache, ``$MOEUT_CACHE`` or
``~/.cache/moeut``; ``python -m tasks.fetch`` fills the cache and nothing else uses the network.
"""

from __future__ import annotations

import gzip
import importlib.resources
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.base.options import OptionError
from tasks.base.storage import git_sha1_of, sha256_of, sha256_of_file


class DataMissing(ValueError):
    """A data file is not on this machine; the message has the command that fetches it."""


class DataDamaged(ValueError):
    """A data file does not have the checksum of the published one."""


class NoHome(ValueError):
    """There is no home directory for a default that lies below it."""


@dataclass(frozen=True)
class DataFile:
    """One official file: where it comes from, and what it must hold."""

    path: str
    """Path under the data folder, with forward slashes: ``scan/tasks.txt``."""
    url: str
    """Address at a pinned upstream commit."""
    sha256: str | None
    """SHA-256 of the file's bytes, unpacked, in hexadecimal; None where only its archive's is
    published: then the one that was noted when it was taken out counts (``tasks.base.pins``)."""
    rows: int | None = None
    """Lines of the file; None where it is not a list of rows."""
    by_default: bool = True
    """Whether ``python -m tasks.fetch <collection>`` fetches it, or only a fetch by its path."""
    archive: DataFile | None = None
    """The published archive that the file is taken out of, and that is not kept; its ``url`` is
    then the file's too."""
    member: str = ""
    """Path inside the archive."""
    git_sha1: str | None = None
    """Git's name of the bytes at the pinned commit, which is checked where no SHA-256 is known."""

    @property
    def collection(self) -> str:
        """First part of the path, the name that ``python -m tasks.fetch`` takes."""
        return self.path.split("/")[0]

    @property
    def checksum(self) -> str | None:
        """What the file's bytes must give, such as ``SHA-256 71ab…``; None: nothing is known."""
        if self.sha256 is not None:
            return f"SHA-256 {self.sha256}"
        return None if self.git_sha1 is None else f"Git SHA-1 {self.git_sha1}"

    def checksum_of(self, data: bytes) -> str:
        """Return what some bytes give, of the kind that ``checksum`` is."""
        if self.sha256 is None and self.git_sha1 is not None:
            return f"Git SHA-1 {git_sha1_of(data)}"
        return f"SHA-256 {sha256_of(data)}"

    @property
    def fetch_command(self) -> str:
        """Command that brings the file into the cache."""
        return f"python -m tasks.fetch {self.collection if self.by_default else self.path}"


def file_table(name: str) -> list[list[str]]:
    """Return the fields of each line of ``tasks/data/<name>``, a table of official files.

    Lines that begin with ``#`` are left out.
    """
    table = importlib.resources.files("tasks").joinpath(f"data/{name}")
    lines = table.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def files_of_git(
    table: str, collection: str, repository: str, is_default: Callable[[str], bool]
) -> dict[str, DataFile]:
    """Return the files of a table of paths and Git's names of their bytes, by path.

    Args:
        table: its name in ``tasks/data``.
        collection: folder that they lie in here.
        repository: address of the folder that they lie in upstream, at a pinned commit.
        is_default: whether a fetch of the collection brings a path.
    """
    return {
        name: DataFile(
            path=f"{collection}/{name}",
            url=f"{repository}/{name}",
            sha256=None,
            git_sha1=git_sha1,
            by_default=is_default(name),
        )
        for name, git_sha1 in file_table(table)
    }


def cache_folder() -> Path:
    """Return the folder that fetched files are kept in; it need not exist.

    Raises:
        NoHome: there is neither ``MOEUT_CACHE`` nor a home directory.
    """
    folder = os.environ.get("MOEUT_CACHE")
    return Path(folder) if folder else below_home(".cache", "moeut", variable="MOEUT_CACHE")


def data_folders() -> list[Path]:
    """Return the folders that data files are looked for in, in order.

    Raises:
        NoHome: there is neither ``MOEUT_DATA`` nor a cache.
    """
    folder = os.environ.get("MOEUT_DATA")
    given = [Path(folder)] if folder else []
    try:
        return [*given, cache_folder()]
    except NoHome:
        if given:
            return given
        raise


def _places(folder: Path, file: DataFile) -> tuple[Path, Path]:
    """Return where a folder may hold a file: as it is, or packed by gzip."""
    path = folder / file.path
    return path, path.with_name(f"{path.name}.gz")


def unpacked(path: Path) -> bytes:
    """Return the bytes of a file, or what it holds where its name ends in ``.gz``.

    Raises:
        DataDamaged: it is no whole gzip file.
    """
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataDamaged(f"{path}: no whole gzip file: {error}") from None


def locate(file: DataFile) -> Path:
    """Return where a data file lies, without reading it; it may be packed by gzip.

    Raises:
        DataMissing: no data folder has it.
    """
    folders = data_folders()
    for folder in folders:
        for path in _places(folder, file):
            if path.is_file():
                return path
    raise DataMissing(
        f"{file.path}: not found in {' or '.join(map(str, folders))}; "
        f"fetch it with: {file.fetch_command}"
    )


def read_bytes(file: DataFile) -> bytes:
    """Return the bytes of a data file after comparing them with its checksum.

    Raises:
        DataMissing: no data folder has it.
        DataDamaged: it has another checksum.
    """
    path = locate(file)
    data = path.read_bytes() if file.path.endswith(".gz") else unpacked(path)
    _compare(file, path, file.checksum_of(data))
    return data


def checked_path(file: DataFile) -> Path:
    """Return where a data file lies, after comparing its bytes without keeping them in memory.

    Raises:
        DataMissing: no data folder has it.
        DataDamaged: it has another checksum.
    """
    path = locate(file)
    if path.name != Path(file.path).name or file.git_sha1 is not None:
        read_bytes(file)  # packed, or named by Git: its bytes have to be had together
    else:
        _compare(file, path, f"SHA-256 {sha256_of_file(path)}")
    return path


def _compare(file: DataFile, path: Path, found: str) -> None:
    """Compare what a file gives with its published checksum, or with what was noted of it."""
    expected = file.checksum
    if expected is None and file.archive is not None:
        from tasks.base.pins import pinned  # for few files

        noted = path.with_name(Path(file.path).name)
        expected = f"SHA-256 {pinned(noted, found.removeprefix('SHA-256 '))}"
    if expected not in (None, found):
        raise DataDamaged(
            f"{path}: damaged: {found}, expected {expected}; remove it and fetch it "
            f"again with: {file.fetch_command}"
        )


def read_lines(file: DataFile) -> list[str]:
    """Return the lines of a data file, without line ends, after checking its bytes.

    Raises:
        DataMissing: no data folder has it.
        DataDamaged: it has another checksum, or another number of lines.
    """
    # Only line feeds end a line: text may hold other characters that Python splits at.
    try:
        text = read_bytes(file).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataDamaged(f"{locate(file)}: not UTF-8 at byte {error.start}") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    if file.rows is not None and len(lines) != file.rows:
        raise DataDamaged(f"{locate(file)}: {len(lines)} lines, expected {file.rows}")
    return lines


# --- the home directory, which containers and batch jobs may lack -----------------------


def below_home(*names: str, variable: str) -> Path:
    """Return a path below the home directory.

    Args:
        names: parts of the path.
        variable: what the user can set in place of it, for the message.

    Raises:
        NoHome: the user has no home directory.
    """
    try:
        return Path.home().joinpath(*names)
    except RuntimeError:
        raise NoHome(
            f"this user has no home directory for {'/'.join(('~', *names))}; set {variable} to a "
            "folder that may be written to"
        ) from None


def expand_user(name: str, option: str) -> Path:
    """Return a path that a user gave, its ``~`` or ``~name`` replaced.

    Args:
        name: the path as given.
        option: dotted path of the option that gave it, such as ``task.train``.

    Raises:
        OptionError: there is no such user, or it has no home directory.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        user = name.split("/")[0]
        reason = "no home directory; set HOME" if user == "~" else f"no home directory of {user}"
        raise OptionError(option, name, f"{reason}, or write the whole path") from None
