"""From a corpus to token shards: in parallel, and the same bytes however often it is interrupted.

A part of the corpus is the unit of work. Its files depend on nothing but the part and the recipe,
and when they are whole, ``parts/00012.json`` records them; the next call goes on with the parts
that have no record. ``prepared.json`` is written last: it means done.

    prepared.json      splits, shards, checksums, counts
    tokenizer/         the tokenizer's file
    train/00012.*      a shard for each part that has training text
    validation/00000.* one shard, as few documents are held out; likewise test
    parts/             records and held-out documents of the parts, while packing goes on
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from tasks.base.cores import available_cores
from tasks.base.text import TOKENIZER_FOLDER, Tokenizer
from tasks.language.documents import Part
from tasks.language.packed_part import (
    PARTS,
    HeldOut,
    PartRecord,
    Recipe,
    pack_part,
    read_record,
    write_digests,
)
from tasks.language.prepared import Prepared, write_prepared
from tasks.language.shards import Shard, ShardWriter, check_files, token_type
from tasks.language.splitting import HELD_OUT, SPLITS, first_occurrences
from tasks.language.tokenizers import load_tokenizer
from tasks.language.workers import Bar, pool

logger = logging.getLogger(__name__)


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
                held_out = [number for number, record in chosen if record.has_held_out]
                write_digests(self.folder, held_out)
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
        part, sha256 = self.parts[number], self.tokenizer.sha256()
        record = read_record(self.folder, number, part, sha256, self.dtype)
        if record is not None:
            future: Future[PartRecord] = Future()
            future.set_result(record)
            return future
        first = self.first if self.training and number == self.training[0] else []
        return executor.submit(pack_part, self.folder, number, part, self.recipe, sha256, first)

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
        prepared = Prepared(
            self.folder,
            self.dtype,
            {split: splits[split] for split in SPLITS},
            duplicates,
            len(chosen),
            len(self.parts),
            self.tokenizer.sha256(),
        )
        write_prepared(
            prepared,
            {
                "vocabulary_size": self.tokenizer.vocabulary_size,
                "boundary": self.recipe.boundary,
            },
        )
        self._tidy({shard.name for shard in prepared.shards()})
        return prepared

    def _merge(
        self, split: str, chosen: dict[int, PartRecord], seen: set[bytes]
    ) -> tuple[Shard, int]:
        """Join the documents of a held-out split, each text once.

        Returns:
            Its shard, and the number of documents that were dropped as duplicates.
        """
        dropped = 0
        with ShardWriter(self.folder, f"{split}/00000", self.dtype, self.first) as writer:
            for number, record in chosen.items():
                if not record.has_held_out:
                    continue
                held = HeldOut.read(self.folder, number)
                digests = [row.tobytes() for row in held.digests.get(split, ())]
                new = first_occurrences(digests, seen)
                dropped += len(new) - int(new.sum())
                for index in np.flatnonzero(new).tolist():
                    writer.add(held.document(split, index), int(held.sizes[split][index]))
        assert writer.shard is not None
        return writer.shard, dropped

    def _tidy(self, used: set[str]) -> None:
        """Remove the files that only packing needs, and shards of parts beyond ``train_tokens``."""
        for path in (self.folder / "train").iterdir():
            if f"train/{path.stem}" not in used:
                path.unlink()
        shutil.rmtree(self.folder / PARTS)
