"""A packed corpus on disk, as its index ``prepared.json`` describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base.data_files import DataDamaged
from tasks.base.storage import write_json
from tasks.language.shards import Shard

PREPARED = "prepared.json"
"""The index: splits, shards, checksums, counts; it is written last and means done."""


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

    def num_documents(self, split: str) -> int:
        """Return the documents of a split, those left out as duplicates among them."""
        return sum(shard.documents for shard in self.splits[split]) + self.duplicates[split]

    def summary(self) -> str:
        """Return how many documents each split has, and how many duplicates were left out."""
        counts = {name: sum(s.documents for s in shards) for name, shards in self.splits.items()}
        return ", ".join(
            f"{name} {count:,} documents ({self.duplicates[name]:,} duplicates dropped)"
            for name, count in counts.items()
        )


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


def write_prepared(prepared: Prepared, further: Mapping[str, Any]) -> None:
    """Write the index of a packed corpus; from now on it counts as done.

    Args:
        prepared: the packed corpus.
        further: facts for people who read the index, as plain data.

    Raises:
        OSError: the disk is full or not writable.
    """
    content = {
        "dtype": prepared.dtype.str,
        "tokenizer": prepared.tokenizer_sha256,
        **further,
        "parts": prepared.num_parts,
        "of_parts": prepared.of_parts,
        "splits": {
            split: {
                "duplicates": prepared.duplicates[split],
                "shards": [shard.to_json() for shard in shards],
            }
            for split, shards in prepared.splits.items()
        },
    }
    write_json(prepared.folder / PREPARED, content)
