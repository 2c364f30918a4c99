"""One part of a corpus, packed by one worker.

Training text goes to a shard of the part's own. Held-out documents wait in a file until all parts
are packed: they become one shard, each text once. A record says that both are whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.base.storage import open_atomically, write_atomically, write_json
from tasks.base.text import TOKENIZER_FOLDER, Tokenizer
from tasks.language.documents import Document, Part
from tasks.language.shards import Shard, ShardWriter, token_type
from tasks.language.splitting import DIGEST_BYTES, DigestSet, SplitRule, digest
from tasks.language.tokenizers import load_tokenizer

PARTS = "parts"
"""Folder, inside that of the packed corpus, of the files that only packing needs."""
DIGESTS = "held_out.digests"
BATCH_CHARACTERS = 1 << 20
"""Characters of the documents that are tokenised at once."""

Boundary = Literal["token", "paper", "none"]


@dataclass(frozen=True)
class Recipe:
    """The choices that decide the bytes, beside the corpus and the tokenizer."""

    rule: SplitRule
    boundary: Boundary
    separator: str
    """Text that ``boundary: paper`` puts after each document."""
    train_tokens: int | None = None
    """Pack the shortest run of parts, from the first, with this many training tokens; None: all."""


@dataclass(frozen=True)
class PartRecord:
    """The outcome of packing one part."""

    name: str
    tokenizer: str
    """SHA-256 of the tokenizer's file."""
    train: Shard | None
    dropped: int
    """Training documents left out since their text is held out."""
    has_held_out: bool


def read_record(
    folder: Path, number: int, part: Part, sha256: str, dtype: np.dtype[Any]
) -> PartRecord | None:
    """Return the record that an earlier call made of a part, unless its files have gone since.

    Args:
        folder: the folder of the packed corpus.
        number: the part's place in the corpus.
        part: the part.
        sha256: of the tokenizer's file; a record of another tokenizer does not count.
        dtype: type of the ids.
    """
    try:
        content = json.loads(_record_path(folder, number).read_text(encoding="utf-8"))
        train = content.pop("train")
        record = PartRecord(**content, train=Shard(**train) if train else None)
        if record.has_held_out and not held_out_path(folder, number).is_file():
            return None
        if record.train is not None:
            size = (folder / f"{record.train.name}.tokens").stat().st_size
            if size != record.train.tokens * dtype.itemsize:
                return None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return record if (record.name, record.tokenizer) == (part.name, sha256) else None


def _record_path(folder: Path, number: int) -> Path:
    return folder / PARTS / f"{number:05d}.json"


def encode_documents(
    texts: Sequence[str], tokenizer: Tokenizer, boundary: Boundary, separator: str
) -> list[list[int]]:
    """Return the ids that each document adds to the stream, its boundary or separator included.

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


class HeldOut:
    """The held-out documents of one part, held in memory: four bytes a token."""

    def __init__(self) -> None:
        self.tokens: dict[str, np.ndarray] = {}
        """Split → ids of its D documents, one after another, (N,) uint32."""
        self.ends: dict[str, np.ndarray] = {}
        """Split → where in ``tokens`` each document ends, (D,) int64."""
        self.sizes: dict[str, np.ndarray] = {}
        """Split → bytes of each document's text, (D,) int64."""
        self.digests: dict[str, np.ndarray] = {}
        """Split → digest of each document, (D, 16) uint8."""

    @classmethod
    def collect(cls, documents: dict[str, list[tuple[np.ndarray, int, bytes]]]) -> HeldOut:
        """Return documents given for each split as ids (length,), bytes of text, and digest."""
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
        """Return the ids of one document, (length,) uint32."""
        begin = self.ends[split][index - 1] if index else 0
        return self.tokens[split][begin : self.ends[split][index]]

    def write(self, folder: Path, number: int) -> None:
        """Write the documents of part ``number`` to a file that appears only when whole.

        Raises:
            OSError: the disk is full or not writable.
        """
        arrays = {
            f"{split}.{kind}": getattr(self, kind)[split]
            for split in self.tokens
            for kind in ("tokens", "ends", "sizes", "digests")
        }
        with open_atomically(held_out_path(folder, number)) as stream:
            np.savez(stream, **arrays)

    @classmethod
    def read(cls, folder: Path, number: int) -> HeldOut:
        """Read the documents that ``write`` has written of part ``number``."""
        held = cls()
        with np.load(held_out_path(folder, number), allow_pickle=False) as arrays:
            for name in arrays.files:
                split, kind = name.split(".")
                getattr(held, kind)[split] = arrays[name]
        return held


def held_out_path(folder: Path, number: int) -> Path:
    """Return where the held-out documents of part ``number`` wait."""
    return folder / PARTS / f"{number:05d}.held_out.npz"


def write_digests(folder: Path, numbers: Sequence[int]) -> None:
    """Write the digests of the texts that some parts hold out; train is then packed without them.

    Raises:
        OSError: the disk is full or not writable.
    """
    found = [HeldOut.read(folder, number).digests for number in numbers]
    rows = [rows.tobytes() for digests in found for rows in digests.values()]
    write_atomically(folder / PARTS / DIGESTS, b"".join(rows))


def pack_part(
    folder: Path, number: int, part: Part, recipe: Recipe, sha256: str, first: Sequence[int]
) -> PartRecord:
    """Pack one part and record it, in a worker.

    Args:
        folder: the folder of the packed corpus, with the tokenizer.
        number: the part's place in the corpus.
        part: the part.
        recipe: how documents are divided and joined.
        sha256: of the tokenizer's file.
        first: ids that open the training stream, where it begins with this part.

    Raises:
        ValueError: a document cannot be read, or the tokenizer gives an id beyond its size.
        OSError: the disk is full or not writable.
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
            try:
                encoded = encode_documents(texts, tokenizer, recipe.boundary, recipe.separator)
            except ValueError as error:
                raise ValueError(f"{_refused(batch, tokenizer).name}: {error}") from None
            for document, ids in zip(batch, encoded, strict=True):
                _check_ids(ids, tokenizer, document)
                key = digest(document.text)
                split = recipe.rule.split(part.split, key)
                size = len(document.text.encode("utf-8"))
                if split != "train":
                    # A list of numbers takes nine times the memory; upstream holds out whole files.
                    held.setdefault(split, []).append((np.array(ids, dtype="<u4"), size, key))
                elif excluded is not None and key in excluded:
                    dropped += 1
                else:
                    assert writer is not None
                    writer.add(ids, size)
    if held:
        HeldOut.collect(held).write(folder, number)
    train = writer.shard if writer is not None else None
    record = PartRecord(part.name, sha256, train, dropped, bool(held))
    write_json(_record_path(folder, number), asdict(record))
    return record


def _refused(batch: Sequence[Document], tokenizer: Tokenizer) -> Document:
    """Return the first document of a batch that the tokenizer cannot encode."""
    for document in batch:
        try:
            tokenizer.encode(document.text)
        except ValueError:
            return document
    return batch[0]  # what cannot be encoded is the separator after it


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
    """Return the digests of the texts that upstream holds out, where they are packed already."""
    return _read_digests(path, path.stat().st_size) if path.is_file() else None


@lru_cache(maxsize=1)
def _read_digests(path: Path, size: int) -> DigestSet:
    return DigestSet(np.fromfile(path, dtype=np.uint8))
