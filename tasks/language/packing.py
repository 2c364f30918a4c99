"""From a corpus to token shards: in parallel, and the same bytes however often it is interrupted.

A part of the corpus is the unit of work. What a worker makes of one depends on nothing but the part
and the recipe, and is recorded in ``parts/00012.json`` when its files are whole; the next call goes
on with the parts that have no record. ``prepared.json`` is written last: it means done.

    prepared.json      splits, shards, checksums, counts
    tokenizer/         the tokenizer's file
    train/00012.*      a shard for each part that has training text
    validation/00000.* one shard, as few documents are held out; likewise test
    parts/             records and held-out documents of the parts, while packing goes on
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.base.cores import available_cores
from tasks.base.provenance import DataDamaged
from tasks.base.storage import open_atomically, write_atomically, write_json
from tasks.base.text import TOKENIZER_FOLDER, Tokenizer
from tasks.language.documents import Document, Part
from tasks.language.shards import Shard, ShardWriter, check_files, token_type
from tasks.language.splitting import (
    DIGEST_BYTES,
    HELD_OUT,
    SPLITS,
    DigestSet,
    SplitRule,
    digest,
    first_occurrences,
)
from tasks.language.tokenizers import load_tokenizer
from tasks.language.workers import Bar, pool

logger = logging.getLogger(__name__)

PREPARED = "prepared.json"
PARTS = "parts"
DIGESTS = "held_out.digests"
BATCH_CHARACTERS = 1 << 20
"""Characters of the documents that are tokenised at once."""

Boundary = Literal["token", "paper", "none"]


@dataclass(frozen=True)
class Recipe:
    """What, beside the corpus and the tokenizer, decides the bytes."""

    rule: SplitRule
    boundary: Boundary
    separator: str
    """Text that ``boundary: paper`` puts after each document."""
    train_tokens: int | None = None
    """Pack the shortest run of parts, from the first, with so many training tokens; None: all."""


@dataclass(frozen=True)
class Prepared:
    """A packed corpus on disk."""

    folder: Path
    dtype: np.dtype[Any]
    splits: dict[str, tuple[Shard, ...]]
    """The shards of each split, in order."""
    duplicates: dict[str, int]
    """Documents left out of each split: their text is held out elsewhere or occurred before."""
    num_parts: int
    """Parts of the corpus that were packed."""
    of_parts: int
    tokenizer_sha256: str

    def shards(self) -> list[Shard]:
        """Return the shards of every split."""
        return [shard for shards in self.splits.values() for shard in shards]

    def summary(self) -> str:
        """Return how many documents each split has, and how many duplicates were left out."""
        counts = {name: sum(s.documents for s in shards) for name, shards in self.splits.items()}
        return ", ".join(
            f"{name} {count:,} documents ({self.duplicates[name]:,} duplicates dropped)"
            for name, count in counts.items()
        )


@dataclass(frozen=True)
class PartRecord:
    """What became of one part."""

    name: str
    tokenizer: str
    """SHA-256 of the tokenizer's file."""
    train: Shard | None
    dropped: int
    """Training documents left out since their text is held out."""
    has_held_out: bool


def encode_documents(
    texts: Sequence[str], tokenizer: Tokenizer, boundary: Boundary, separator: str
) -> list[list[int]]:
    """Return the ids that each document adds to the stream, what follows it included.

    >>> from tasks.language.tokenizers import Bytes
    >>> encode_documents(["ab", "c"], Bytes(), "token", "")
    [[97, 98, 256], [99, 256]]
    >>> encode_documents(["ab", "c"], Bytes(), "paper", "/")
    [[97, 98, 47], [99, 47]]
    """
    if boundary == "paper":
        return tokenizer.encode_batch([text + separator for text in texts])
    encoded = tokenizer.encode_batch(texts)
    if boundary == "none":
        return encoded
    assert tokenizer.boundary_id is not None
    return [[*ids, tokenizer.boundary_id] for ids in encoded]


def read_prepared(folder: Path) -> Prepared | None:
    """Return the packed corpus of a folder, or None where packing has not ended.

    Raises:
        DataDamaged: its index is not readable.
    """
    path = folder / PREPARED
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Prepared(
            folder,
            np.dtype(content["dtype"]),
            {
                name: tuple(Shard(**shard) for shard in split["shards"])
                for name, split in content["splits"].items()
            },
            {name: split["duplicates"] for name, split in content["splits"].items()},
            content["parts"],
            content["of_parts"],
            content["tokenizer"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataDamaged(f"{path}: damaged; remove {folder} and prepare the data again") from None


def pack(
    folder: Path,
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    recipe: Recipe,
    *,
    workers: int | None = None,
) -> Prepared:
    """Pack a corpus into a folder, or go on where an earlier call was stopped.

    The caller holds the folder's lock.

    Args:
        folder: where to; another recipe, corpus or tokenizer needs another folder.
        parts: the corpus.
        tokenizer: what makes ids of text.
        recipe: how documents are divided and joined.
        workers: processes; None: one for each core. The bytes do not depend on it.

    Raises:
        ValueError: a document cannot be read, or there is none.
        OSError: the disk is full or not writable; what is packed is kept.
    """
    try:
        prepared = _Packer(folder, parts, tokenizer, recipe, workers).run()
    except BrokenProcessPool:
        raise OSError(
            f"{folder}: a worker was killed, as for lack of memory; the same command goes on with "
            "what is packed, and with a smaller --workers it needs less memory"
        ) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        full = OSError(
            f"{folder}: the disk is full; what is packed is kept, and the same command goes on "
            "when there is room"
        )
        full.errno = errno.ENOSPC
        raise full from None
    check_files(folder, prepared.shards(), prepared.dtype)
    logger.info("packed %s", prepared.summary())
    return prepared


class _Packer:
    """One call of ``pack``."""

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Part],
        tokenizer: Tokenizer,
        recipe: Recipe,
        workers: int | None,
    ) -> None:
        self.folder, self.parts, self.recipe = folder, parts, recipe
        self.tokenizer = tokenizer
        self.dtype = token_type(tokenizer.vocabulary_size)
        self.workers = min(workers or available_cores(), max(len(parts), 1))
        reach = [recipe.rule.may_reach(part.split) for part in parts]
        self.training = [number for number, splits in enumerate(reach) if "train" in splits]
        self.held_out = [number for number, splits in enumerate(reach) if "train" not in splits]
        self.first = [] if recipe.boundary != "token" else [int(tokenizer.boundary_id or 0)]

    def run(self) -> Prepared:
        self._prepare_folder()
        logger.info(
            "packing %d parts into %s, workers: %d", len(self.parts), self.folder, self.workers
        )
        limit = self.recipe.train_tokens
        bar = (
            Bar("packing", "parts", len(self.parts))
            if limit is None
            else Bar("packing", "train tokens", limit)
        )
        with bar, pool(self.workers) as executor:
            # First what upstream holds out: its texts are then left out of train.
            chosen = self._pack_parts(executor, self.held_out, bar, None)
            if chosen:
                self._write_digests(chosen)
            chosen += self._pack_parts(executor, self.training, bar, limit)
        return self._finish(dict(sorted(chosen)))

    def _prepare_folder(self) -> None:
        for name in (TOKENIZER_FOLDER, PARTS, *SPLITS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            for leftover in (self.folder / name).glob(".*"):
                leftover.unlink()  # of a process that was killed
        saved = self.folder / TOKENIZER_FOLDER
        if not any(saved.iterdir()) or load_tokenizer(saved).sha256() != self.tokenizer.sha256():
            for file in saved.iterdir():
                file.unlink()
            self.tokenizer.save(saved)

    def _pack_parts(
        self, executor: Executor, numbers: Sequence[int], bar: Bar, limit: int | None
    ) -> list[tuple[int, PartRecord]]:
        """Pack parts, in order, until train has ``limit`` tokens; return those that count."""
        waiting: deque[tuple[int, Future[PartRecord]]] = deque()
        left = iter(numbers)
        ahead = 1 if self.workers == 1 else 2 * self.workers
        chosen: list[tuple[int, PartRecord]] = []
        tokens = 0
        while limit is None or tokens < limit:
            while len(waiting) < ahead and (number := next(left, None)) is not None:
                waiting.append((number, self._submit(executor, number)))
            if not waiting:
                break
            number, future = waiting.popleft()
            record = future.result()
            chosen.append((number, record))
            found = record.train.tokens if record.train else 0
            tokens += found
            bar.advance(1 if self.recipe.train_tokens is None else found)
        for _, future in waiting:
            future.cancel()
        return chosen

    def _submit(self, executor: Executor, number: int) -> Future[PartRecord]:
        record = self._recorded(number)
        if record is not None:
            future: Future[PartRecord] = Future()
            future.set_result(record)
            return future
        first = self.first if self.training and number == self.training[0] else []
        part, sha256 = self.parts[number], self.tokenizer.sha256()
        return executor.submit(pack_part, self.folder, number, part, self.recipe, sha256, first)

    def _recorded(self, number: int) -> PartRecord | None:
        """Return what an earlier call recorded of a part, unless its files have gone since."""
        try:
            content = json.loads((self.folder / PARTS / f"{number:05d}.json").read_text())
            train = content.pop("train")
            record = PartRecord(**content, train=Shard(**train) if train else None)
            if record.has_held_out and not _held_out_path(self.folder, number).is_file():
                return None
            if record.train is not None:
                size = (self.folder / f"{record.train.name}.tokens").stat().st_size
                if size != record.train.tokens * self.dtype.itemsize:
                    return None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        same = (record.name, record.tokenizer) == (self.parts[number].name, self.tokenizer.sha256())
        return record if same else None

    def _write_digests(self, chosen: Sequence[tuple[int, PartRecord]]) -> None:
        rows = [
            held.digests[split]
            for number, record in chosen
            if record.has_held_out
            for held in [HeldOut.read(_held_out_path(self.folder, number))]
            for split in held.digests
        ]
        goal = self.folder / PARTS / DIGESTS
        write_atomically(goal, b"".join(row.tobytes() for row in rows))

    def _finish(self, chosen: dict[int, PartRecord]) -> Prepared:
        splits: dict[str, tuple[Shard, ...]] = {}
        duplicates = {"train": sum(record.dropped for record in chosen.values())}
        splits["train"] = tuple(r.train for r in chosen.values() if r.train and r.train.tokens)
        seen: set[bytes] = set()
        for split in HELD_OUT:
            shard, duplicates[split] = self._merge(split, chosen, seen)
            splits[split] = (shard,)
        if not any(shard.documents for shards in splits.values() for shard in shards):
            raise ValueError("the corpus is empty: no document with text in any of its files")
        content = {
            "dtype": self.dtype.str,
            "tokenizer": self.tokenizer.sha256(),
            "vocabulary_size": self.tokenizer.vocabulary_size,
            "boundary": self.recipe.boundary,
            "parts": len(chosen),
            "of_parts": len(self.parts),
            "splits": {
                split: {
                    "duplicates": duplicates[split],
                    "shards": [shard.to_json() for shard in splits[split]],
                }
                for split in SPLITS
            },
        }
        write_json(self.folder / PREPARED, content)
        self._tidy({shard.name for shards in splits.values() for shard in shards})
        prepared = read_prepared(self.folder)
        assert prepared is not None
        return prepared

    def _merge(
        self, split: str, chosen: dict[int, PartRecord], seen: set[bytes]
    ) -> tuple[Shard, int]:
        """Join what the parts have of a held-out split, each text once; return it and the rest."""
        dropped = 0
        with ShardWriter(self.folder, f"{split}/00000", self.dtype, self.first) as writer:
            for number, record in chosen.items():
                if not record.has_held_out:
                    continue
                held = HeldOut.read(_held_out_path(self.folder, number))
                digests = [row.tobytes() for row in held.digests.get(split, ())]
                new = first_occurrences(digests, seen)
                dropped += len(new) - int(new.sum())
                for index in np.flatnonzero(new).tolist():
                    writer.add(held.document(split, index), int(held.sizes[split][index]))
        assert writer.shard is not None
        return writer.shard, dropped

    def _tidy(self, used: set[str]) -> None:
        """Remove what only packing needs, and shards of parts beyond ``train_tokens``."""
        for path in (self.folder / "train").iterdir():
            if f"train/{path.stem}" not in used:
                path.unlink()
        shutil.rmtree(self.folder / PARTS)


class HeldOut:
    """The held-out documents of one part, held in memory: four bytes a token."""

    def __init__(self) -> None:
        self.tokens: dict[str, np.ndarray] = {}
        self.ends: dict[str, np.ndarray] = {}
        self.sizes: dict[str, np.ndarray] = {}
        """Bytes of the documents' text."""
        self.digests: dict[str, np.ndarray] = {}

    @classmethod
    def collect(cls, documents: dict[str, list[tuple[np.ndarray, int, bytes]]]) -> HeldOut:
        """Return documents given for each split as ids, bytes of text and digest."""
        held = cls()
        for split, rows in documents.items():
            lengths = [len(ids) for ids, _, _ in rows]
            held.tokens[split] = np.concatenate([ids for ids, _, _ in rows])
            held.ends[split] = np.cumsum(lengths, dtype=np.int64)
            held.sizes[split] = np.array([size for _, size, _ in rows], dtype=np.int64)
            digests = b"".join(row for _, _, row in rows)
            held.digests[split] = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)
        return held

    def document(self, split: str, index: int) -> np.ndarray:
        """Return the ids of one document."""
        begin = self.ends[split][index - 1] if index else 0
        return self.tokens[split][begin : self.ends[split][index]]

    def write(self, path: Path) -> None:
        """Write all of it to a file that appears only when whole."""
        arrays = {
            f"{split}.{kind}": getattr(self, kind)[split]
            for split in self.tokens
            for kind in ("tokens", "ends", "sizes", "digests")
        }
        with open_atomically(path) as stream:
            np.savez(stream, **arrays)

    @classmethod
    def read(cls, path: Path) -> HeldOut:
        """Read what ``write`` has written."""
        held = cls()
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                split, kind = name.split(".")
                getattr(held, kind)[split] = arrays[name]
        return held


def _held_out_path(folder: Path, number: int) -> Path:
    return folder / PARTS / f"{number:05d}.held_out.npz"


def pack_part(
    folder: Path, number: int, part: Part, recipe: Recipe, sha256: str, first: Sequence[int]
) -> PartRecord:
    """Pack one part and record it: what a worker does.

    Args:
        folder: the folder of the packed corpus, with the tokenizer.
        number: the part's place in the corpus.
        part: the part.
        recipe: how documents are divided and joined.
        sha256: of the tokenizer's file.
        first: ids that open the training stream, where it begins with this part.
    """
    tokenizer = load_tokenizer_once(folder / TOKENIZER_FOLDER, sha256)
    excluded = _excluded(folder / PARTS / DIGESTS) if recipe.rule.fixed else None
    held: dict[str, list[tuple[np.ndarray, int, bytes]]] = {}
    dropped = 0
    with contextlib.ExitStack() as stack:
        writer = None
        if "train" in recipe.rule.may_reach(part.split):
            dtype = token_type(tokenizer.vocabulary_size)
            writer = stack.enter_context(ShardWriter(folder, f"train/{number:05d}", dtype, first))
        for batch in batches(part.documents()):
            texts = [document.text for document in batch]
            encoded = encode_documents(texts, tokenizer, recipe.boundary, recipe.separator)
            for document, ids in zip(batch, encoded, strict=True):
                _check_ids(ids, tokenizer, document)
                key = digest(document.text)
                split = recipe.rule.split(part.split, key)
                size = len(document.text.encode("utf-8"))
                if split != "train":
                    # A list of numbers takes nine times as much; upstream holds out whole files.
                    held.setdefault(split, []).append((np.array(ids, dtype="<u4"), size, key))
                elif excluded is not None and key in excluded:
                    dropped += 1
                else:
                    assert writer is not None
                    writer.add(ids, size)
    if held:
        HeldOut.collect(held).write(_held_out_path(folder, number))
    train = writer.shard if writer is not None else None
    record = PartRecord(part.name, sha256, train, dropped, bool(held))
    write_json(
        folder / PARTS / f"{number:05d}.json",
        asdict(record),
    )
    return record


def _check_ids(ids: Sequence[int], tokenizer: Tokenizer, document: Document) -> None:
    if ids and max(ids) >= tokenizer.vocabulary_size:
        raise ValueError(
            f"{document.name}: the tokenizer gives id {max(ids)}, and says that it has "
            f"{tokenizer.vocabulary_size}"
        )


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Group documents so that each group has about a million characters."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=1)
def load_tokenizer_once(folder: Path, sha256: str) -> Tokenizer:
    """Read the tokenizer of a checksum, or return the one this process read last."""
    return load_tokenizer(folder)


def _excluded(path: Path) -> DigestSet | None:
    """Return the digests of what upstream holds out, where that is packed already."""
    return _read_digests(path, path.stat().st_size) if path.is_file() else None


@lru_cache(maxsize=1)
def _read_digests(path: Path, size: int) -> DigestSet:
    return DigestSet(np.fromfile(path, dtype=np.uint8))
