"""Download official data files into the cache: the only module of ``tasks`` that uses the network.

    python -m tasks.fetch scan cogs                                what the tasks read
    python -m tasks.fetch scan/template_split                      one file, or a folder of files
    python -m tasks.fetch scan --from https://mirror.example/data  the same paths from elsewhere

Every file comes from a pinned upstream commit and is kept only if its SHA-256, or that of the
archive that it is taken out of, is the published one; of what is taken out the SHA-256 is noted,
and compared whenever it is read. Files that are there already are not fetched again, and an
interrupted download goes on where it stopped.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import DownloadColumn, TransferSpeedColumn

from tasks import cfq, listops, logical_inference, mcwq, scan, slog
from tasks.base.command_line import Parser, run
from tasks.base.console import make_console, make_progress, say
from tasks.base.data_files import (
    DataDamaged,
    DataFile,
    DataMissing,
    NoHome,
    cache_folder,
    locate,
    unpacked,
)
from tasks.base.options import nearest
from tasks.base.pins import read_pin, write_pin
from tasks.base.storage import open_atomically, sha256_of_file
from tasks.cogs import official, recogs
from tasks.pcfg import official as pcfg
from tasks.puzzles import official as puzzles
from tasks.zero_shot import ZERO_SHOT

COLLECTIONS: dict[str, tuple[DataFile, ...]] = {
    "scan": (*scan.DATA_FILES.values(), scan.MCD_ARCHIVE),
    "cogs": tuple(official.DATA_FILES.values()),
    "recogs": tuple(recogs.DATA_FILES.values()),
    "slog": tuple(slog.DATA_FILES.values()),
    "pcfg_set": tuple(pcfg.DATA_FILES.values()),
    "cfq": tuple(cfq.DATA_FILES.values()),
    "mcwq": tuple(mcwq.DATA_FILES.values()),
    "listops": tuple(listops.DATA_FILES.values()),
    "logical_inference": tuple(logical_inference.DATA_FILES.values()),
    **puzzles.COLLECTIONS,
    **{name: benchmark.files for name, benchmark in ZERO_SHOT.items()},
}
"""Official files by collection."""

TIMEOUT = 30.0
"""Seconds without an answer after which a connection is given up."""
CHUNK = 1 << 16

Report = Callable[[int, int | None], None]
"""Called with the bytes had so far and the total, None where the server does not say it."""


class FetchError(ValueError):
    """A file could not be fetched; the message has its address and the reason."""


def choose(names: Sequence[str]) -> list[DataFile]:
    """Return the files that names ask for, each once.

    A collection stands for the files that its tasks read, a longer path for that file or for every
    file under that folder.

    Raises:
        ValueError: a name stands for no file.
    """
    chosen: dict[str, DataFile] = {}
    every = [file for files in COLLECTIONS.values() for file in files]
    for name in names:
        path = name.strip("/")
        if path in COLLECTIONS:
            matching = [file for file in COLLECTIONS[path] if file.by_default]
        else:
            matching = [f for f in every if f.path == path or f.path.startswith(path + "/")]
        if not matching:
            folders = {str(Path(file.path).parent) for file in every}
            known = [*COLLECTIONS, *sorted(folders - set(COLLECTIONS)), *(f.path for f in every)]
            raise ValueError(
                f"{name!r}: expected {' or '.join(COLLECTIONS)}, or a path under one of them"
                f"{nearest(name, known)}"
            )
        chosen |= {file.path: file for file in matching}
    return list(chosen.values())


def is_present(file: DataFile) -> bool:
    """Return whether a data folder has the file with the right checksum."""
    try:
        path = locate(file)  # the first one there is the one that is read
    except DataMissing:
        return False
    noted = read_pin(path.with_name(Path(file.path).name))
    expected = file.checksum or (noted and f"SHA-256 {noted}")
    if expected is None:
        return True
    try:
        packed = path.name != Path(file.path).name
        return _found(file, path, packed=packed) == expected
    except DataDamaged:
        return False


def fetch_file(
    file: DataFile,
    folder: Path,
    mirror: str | None = None,
    report: Report = lambda had, total: None,
) -> Path:
    """Download one file into a folder, check it, and return where it lies.

    Where a file is part of an archive, the archive is downloaded, and stays for its other files.
    The bytes gather in ``<name>.part`` beside the goal, from which a later call goes on, and take
    the goal's name only when their checksum is right.

    Raises:
        FetchError: no connection, an answer other than the file, or bytes of another checksum.
        OSError: the folder cannot be written to.
    """
    goal = folder / file.path
    if file.archive is not None:
        archive = folder / file.archive.path
        if not (archive.is_file() and sha256_of_file(archive) == file.archive.sha256):
            fetch_file(file.archive, folder, mirror, report)
        _extract(archive, file.member, goal)
        write_pin(goal, sha256_of_file(goal))
        return goal
    address = f"{mirror.rstrip('/')}/{urllib.parse.quote(file.path)}" if mirror else file.url
    part = goal.with_name(goal.name + ".part")
    goal.parent.mkdir(parents=True, exist_ok=True)
    resumed = _download(address, part, report)
    found = _found(file, part)
    if found != file.checksum and resumed:
        # The partial file of before may have been the start of another one.
        part.unlink()
        _download(address, part, report)
        found = _found(file, part)
    if found != file.checksum:
        part.unlink()
        raise FetchError(f"{address}: damaged: {found}, expected {file.checksum}")
    os.replace(part, goal)
    return goal


def _found(file: DataFile, path: Path, *, packed: bool = False) -> str:
    """Return the checksum that a file's bytes have where they lie."""
    if file.git_sha1 is None and not packed:
        return f"SHA-256 {sha256_of_file(path)}"
    return file.checksum_of(unpacked(path) if packed else path.read_bytes())


def _extract(archive: Path, member: str, goal: Path) -> None:
    """Write one member of a zip or tar archive to a path of its own."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            _open_member(archive, member) as source,
            open_atomically(goal, durable=False) as sink,
        ):
            shutil.copyfileobj(source, sink, CHUNK)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FetchError(f"{archive}: no {member} inside that can be read: {error}") from error


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped, zipped.open(member) as stream:
            yield stream
        return
    with tarfile.open(archive) as tar:
        extracted = tar.extractfile(member)
        if extracted is None:
            raise KeyError(f"{member} is no file")
        with extracted:
            yield extracted


def _download(address: str, part: Path, report: Report) -> bool:
    """Append the missing bytes to a partial file; return whether it was resumed.

    An interrupted transfer leaves the partial file for the next call.
    """
    had = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "moeut-suite"} | ({"Range": f"bytes={had}-"} if had else {})
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            resumed = had > 0 and getattr(answer, "status", 200) == 206
            had = had if resumed else 0
            length = answer.headers.get("Content-Length")
            total = had + int(length) if length and length.isdigit() else None
            with open(part, "ab" if resumed else "wb") as stream:
                while chunk := answer.read(CHUNK):
                    stream.write(chunk)
                    had += len(chunk)
                    report(had, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and had:  # nothing is left of it to send: whole, or of another file
            return True
        raise FetchError(f"{address}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise FetchError(f"{address}: no connection: {error.reason}") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(error) or type(error).__name__
        raise FetchError(f"{address}: connection lost: {reason}") from error
    except ValueError as error:
        raise FetchError(f"{address}: not an address: {error}") from error
    if total is not None and had < total:
        raise FetchError(
            f"{address}: connection lost after {had} of {total} bytes; the same command goes on"
        )
    return resumed


def fetch(files: Sequence[DataFile], mirror: str | None, console: Console) -> int:
    """Fetch every file that is not there yet, showing progress; return how many were fetched.

    Raises:
        FetchError: a file fails; those fetched before it are kept.
    """
    missing = [file for file in files if not is_present(file)]
    say(console, f"{len(files)} files, {len(files) - len(missing)} already there")
    with make_progress(console, DownloadColumn, TransferSpeedColumn) as progress:
        for number, file in enumerate(missing, start=1):
            bar = progress.add_task(f"{number}/{len(missing)} {file.path}", total=None)

            def report(had: int, total: int | None, bar: int = bar) -> None:
                progress.update(bar, completed=had, total=total)  # type: ignore[arg-type]

            goal = fetch_file(file, cache_folder(), mirror, report)
            progress.remove_task(bar)
            say(console, str(goal))
    for archive in {file.archive.path for file in missing if file.archive is not None}:
        (cache_folder() / archive).unlink(missing_ok=True)
    return len(missing)


def _shown_cache() -> str:
    try:
        return f"{cache_folder()} (MOEUT_CACHE names another)"
    except NoHome as error:
        return f"none yet, since {error}"


def main(words: Sequence[str] | None = None) -> None:
    """Fetch as the command line says.

    Raises:
        ValueError: a name that stands for no file, or a file that could not be fetched.
        OSError: the cache cannot be written to.
    """
    parser = Parser(
        prog="python -m tasks.fetch",
        description="Download official data files, check them and keep them in the cache:\n"
        f"{_shown_cache()}.",
        epilog="""examples:
  python -m tasks.fetch scan cogs                  what these tasks read
  python -m tasks.fetch blimp piqa                 for runners.evaluate --task blimp --task piqa
  python -m tasks.fetch scan/template_split        one folder of files, or one file
  python -m tasks.fetch scan --from https://mirror.example/data

Every file comes from a pinned upstream commit and is kept only if its SHA-256 is the published
one. arc_easy (681 MB) and cbt (121 MB) come as an archive, whose SHA-256 is checked instead, and
which is removed in the end. Files that are there already are not fetched again, and an
interrupted download goes on where it stopped.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(COLLECTIONS)}, or a path under one of them",
    )
    parser.add_argument(
        "--from",
        dest="mirror",
        metavar="URL",
        help="where the same paths lie, instead of their authors' servers",
    )
    arguments = parser.parse_intermixed_args(words)
    fetch(choose(arguments.names), arguments.mirror, make_console())


if __name__ == "__main__":
    run(main)
