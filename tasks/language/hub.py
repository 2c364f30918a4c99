"""Data sets of the Hugging Face hub, streamed: only the packed text is kept on disk.

Two kinds. `HubFiles` knows the files of a repository by name, at one commit, so that its parts and
its fingerprint need no network; they are read with our own readers. `HubDataset` asks the
``datasets`` library for the content of a repository, or of a folder that is laid out like one.

A file that already lies in the hub's cache (``hf download``) is read there, so that a machine
without network (``HF_HUB_OFFLINE=1``) can work from it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tasks.base.data_files import expand_user
from tasks.base.options import OptionError
from tasks.language.corpus_files import DOCUMENT_BYTES, remembered_sha256
from tasks.language.documents import DOCUMENT_SEPARATOR, Corpus, Document, Part
from tasks.language.extras import need
from tasks.language.folders import Walk
from tasks.language.formats import (
    DAMAGES,
    PARQUET,
    READ_BYTES,
    TEXT,
    decompressed,
    format_of,
    read_json_lines,
    read_parquet,
    read_text,
    text_of_row,
)

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20
"""How much of a file is asked for at a time."""
PURPOSE = "reading from the Hugging Face hub"

SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""A data set's own name of a split → its name here; splits of other names are left out."""


@dataclass(frozen=True)
class HubFile(Part):
    """One file of a repository at one commit."""

    name: str
    """Its path in the repository."""
    repository: str
    revision: str
    text_field: str
    is_gated: bool
    split: str | None = None

    def documents(self) -> Iterator[Document]:
        """Yield the documents of the file as it arrives.

        Raises:
            ValueError: it cannot be read, or access to it is missing.
        """
        place = f"{self.repository}/{self.name}"
        kind, compression = format_of(self.name) or (TEXT, "")
        try:
            with self._open() as file:
                if kind == PARQUET:
                    yield from read_parquet(file, place, self.text_field)
                    return
                stream = decompressed(file, compression)
                if kind == TEXT:
                    yield from read_text(stream, place, DOCUMENT_BYTES)
                else:
                    yield from read_json_lines(stream, place, self.text_field)
        except _network_errors() as error:
            raise ValueError(f"{place} at {self.revision}: {_reason(error)}") from None

    def _open(self) -> BinaryIO:
        hub = need("huggingface_hub", PURPOSE)
        cached = hub.try_to_load_from_cache(
            self.repository, self.name, revision=self.revision, repo_type="dataset"
        )
        if isinstance(cached, str):
            return open(cached, "rb")
        if self.is_gated and hub.get_token() is None:
            raise ValueError(
                f"{self.repository}: access is asked for at "
                f"https://huggingface.co/datasets/{self.repository}; then set HF_TOKEN"
            )
        file = hub.HfFileSystem().open(
            f"datasets/{self.repository}/{self.name}",
            revision=self.revision,
            block_size=BLOCK_BYTES,
        )
        return cast(BinaryIO, io.BufferedReader(file, READ_BYTES))


class HubFiles(Corpus):
    """Named files of one repository at one commit.

    Args:
        name: The corpus's name.
        repository: ``owner/name`` of a data set.
        revision: The commit's hash.
        files: ``(split, path)`` in the order that they are read in.
        text_field: Field or column that holds the text.
        separator: Text that the paper's code puts after each document.
        is_gated: Whether reading needs a token.
        paper_tokenizer_parts: Number of training files that the paper's tokenizer is trained on.
    """

    uses_network = True

    def __init__(
        self,
        name: str,
        repository: str,
        revision: str,
        files: Sequence[tuple[str, str]],
        *,
        text_field: str = "text",
        separator: str = DOCUMENT_SEPARATOR,
        is_gated: bool = False,
        paper_tokenizer_parts: int | None = None,
    ) -> None:
        self.name, self.repository, self.revision = name, repository, revision
        self.files, self.text_field, self.is_gated = list(files), text_field, is_gated
        self.separator, self.paper_tokenizer_parts = separator, paper_tokenizer_parts

    def parts(self) -> list[Part]:
        """Return one part per file."""
        return [
            HubFile(path, self.repository, self.revision, self.text_field, self.is_gated, split)
            for split, path in self.files
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Return repository, commit, and the SHA-256 of the list of files; needs no network."""
        listing = "".join(f"{split}  {path}\n" for split, path in self.files)
        return {
            "corpus": self.name,
            "repository": self.repository,
            "revision": self.revision,
            "text_field": self.text_field,
            "files": len(self.files),
            "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        }


@dataclass(frozen=True)
class HubDatasetPart(Part):
    """One of the pieces that ``datasets`` cuts a split into, as a rule a file."""

    name: str
    source: tuple[str, str | None, str | None]
    """Repository or folder, config, revision."""
    upstream_split: str
    index: int
    num_parts: int
    text_field: str
    split: str | None = None

    def documents(self) -> Iterator[Document]:
        """Yield the documents of the piece as they arrive.

        Raises:
            ValueError: it cannot be read.
        """
        place = f"{self.source[0]}/{self.name}"
        try:
            rows = _streamed(*self.source)[self.upstream_split]
            if rows.column_names and self.text_field in rows.column_names:
                rows = rows.select_columns([self.text_field])
            piece = rows.shard(num_shards=self.num_parts, index=self.index)
            for number, row in enumerate(piece):
                text = text_of_row(row, f"{place}:{number}", self.text_field)
                if text:
                    yield Document(text, f"{place}:{number}")
        except _library_errors() as error:
            raise ValueError(f"{place}: {_reason(error)}") from None


class HubDataset(Corpus):
    """Any data set that the ``datasets`` library can stream: from the hub, or from a folder.

    Where it has one split only, that split is divided by hash; else its own splits are kept.

    Raises:
        OptionError: no repository or folder is named, or a repository without a revision.
    """

    name = "hub"

    def __init__(
        self,
        repository: str | None,
        config: str | None = None,
        revision: str | None = None,
        text_field: str = "text",
    ) -> None:
        if not repository:
            expected = "corpus 'hub' needs the name of a data set, or a folder"
            raise OptionError("task.hub", repository, expected)
        self.is_folder = is_folder(repository)
        if self.is_folder:
            repository = str(expand_user(repository, "task.hub").absolute())
        elif revision is None:
            raise OptionError(
                "task.hub_revision",
                revision,
                "pin the data set, so that it is the same later; its commits: "
                f"https://huggingface.co/datasets/{repository}/commits/main",
            )
        self.repository, self.config, self.revision = repository, config, revision
        self.text_field = text_field

    @property
    def uses_network(self) -> bool:  # type: ignore[override]
        """Whether it is no folder on this machine."""
        return not self.is_folder

    def parts(self) -> list[Part]:
        """Return each split's pieces, train first; asks the hub for them.

        Raises:
            ValueError: the hub cannot be reached, or several splits without one for training.
        """
        source = (self.repository, self.config, self.revision)
        splits = _streamed(*source)
        known = [name for name in splits if name in SPLITS] if len(splits) > 1 else list(splits)
        if len(splits) > 1 and "train" not in known:
            raise ValueError(
                f"{self.repository}: no split 'train'; it has {', '.join(map(str, splits))}"
            )
        if others := [str(name) for name in splits if name not in known]:
            logger.warning("%s: splits passed over: %s", self.repository, ", ".join(others))
        parts: list[Part] = []
        for name in sorted(known, key=lambda name: list(SPLITS).index(SPLITS.get(name, "train"))):
            number = splits[name].num_shards
            parts += [
                HubDatasetPart(
                    f"{name}-{index:05d}-of-{number:05d}",
                    source,
                    name,
                    index,
                    number,
                    self.text_field,
                    SPLITS[name] if len(splits) > 1 else None,
                )
                for index in range(number)
            ]
        return parts

    def fingerprint(self) -> dict[str, Any]:
        """Return repository, config and revision, or a folder's content; needs no network."""
        what: dict[str, Any] = {"repository": self.repository, "revision": self.revision}
        if self.is_folder:
            folder = Path(self.repository)
            files = Walk().files(folder)
            # The names count: the library divides by them.
            names = [os.fsencode(path.relative_to(folder)) for path in files]
            sums = [remembered_sha256(path).encode() for path in files]
            listing = b"".join(b"%s  %s\n" % each for each in zip(sums, names, strict=True))
            what = {
                "files": len(files),
                "bytes": sum(path.stat().st_size for path in files),
                "sha256": hashlib.sha256(listing).hexdigest(),
            }
        return {
            "corpus": self.name,
            **what,
            "config": self.config,
            "text_field": self.text_field,
        }


def is_folder(hub: str) -> bool:
    """Return whether what stands for the name of a data set is a folder on this machine."""
    return expand_user(hub, "task.hub").is_dir()


@functools.lru_cache(maxsize=4)
def _streamed(repository: str, config: str | None, revision: str | None) -> Any:
    """Return the streamed splits of a data set by name."""
    datasets = need("datasets", PURPOSE)
    datasets.disable_progress_bars()
    # It logs every attempt; the error says how they ended.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    expected: tuple[type[BaseException], ...] = (ValueError, *_library_errors())
    try:
        return datasets.load_dataset(repository, config, revision=revision, streaming=True)
    except expected as error:
        raise OptionError("task.hub", repository, _reason(error)) from None


def _network_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that reading a file from the hub can raise, in all versions.

    huggingface_hub has changed its HTTP library twice; its own error inherits from the base of
    that library's.
    """
    hub = need("huggingface_hub.errors", PURPOSE)
    http = [base for base in hub.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    return (*DAMAGES, *http)


def _library_errors() -> tuple[type[BaseException], ...]:
    """Return these and the exceptions of ``datasets`` itself: its own base, and Arrow's."""
    library = need("datasets.exceptions", PURPOSE).DatasetsError
    return (*_network_errors(), library, need("pyarrow", PURPOSE).ArrowException)


def _reason(error: BaseException) -> str:
    """Return one line about the error, with advice where there is no network."""
    cause: BaseException | None = error
    names = set()
    while cause is not None:
        names |= {base.__name__ for base in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"not on this machine, and HF_HUB_OFFLINE is set ({line})"
    if names & {"ConnectionError", "ConnectError", "TimeoutException", "OfflineModeIsEnabled"}:
        return f"the hub cannot be reached: is there a network? ({line})"
    return f"cannot be read ({type(error).__name__}: {line})"
