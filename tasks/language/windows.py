"""Windows of the context length over a split's shards, which are read as one stream of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.language.shards import OFFSET_TYPE, Shard, check_files, map_array


class TokenSplit:
    """The windows of one split: read-only, memory-mapped, cheap to open in every process.

    Window ``r`` is ``stream[r · C : (r + 1) · C + 1]`` of a context length C: C inputs, and the
    same shifted by one as targets. Consecutive windows share one token, as target of the first and
    input of the second, so every token but the stream's first is predicted once; a rest at the end
    that fills no window is not used.

    Args:
        root: the prepared folder.
        name: the split's name.
        shards: its shards, in order.
        dtype: type of the ids.
        context_length: inputs of a window.
        boundary_id: the token before each document, if there is one.
        num_duplicates: documents left out of the split.
        thorough: compare checksums of files known to be whole, too.

    Raises:
        DataDamaged: a file was cut short or changed.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        shards: Sequence[Shard],
        dtype: np.dtype[Any],
        context_length: int,
        boundary_id: int | None,
        *,
        num_duplicates: int = 0,
        thorough: bool = False,
    ) -> None:
        check_files(root, shards, dtype, thorough=thorough)
        self.name = name
        self.context_length = context_length
        self.shards = tuple(shards)
        self.num_tokens = sum(shard.tokens for shard in shards)
        self.num_bytes = sum(shard.bytes for shard in shards)
        self.num_duplicates = num_duplicates
        self.num_documents = sum(shard.documents for shard in shards)
        self._tokens = [map_array(root / f"{s.name}.tokens", dtype, s.tokens) for s in shards]
        self._offsets = [
            map_array(root / f"{s.name}.offsets", OFFSET_TYPE, s.documents) for s in shards
        ]
        self._starts = np.cumsum([0, *(shard.tokens for shard in shards)])
        # A document begins with the boundary before it: what predicts its first token.
        self._lead = 0 if boundary_id is None else 1

    def __len__(self) -> int:
        """Return the number of whole windows."""
        return max(self.num_tokens - 1, 0) // self.context_length

    def windows(self, rows: np.ndarray) -> np.ndarray:
        """Return the windows of some rows, (N, context_length + 1) int64.

        Raises:
            IndexError: a row outside 0 to ``len(self) - 1``.
        """
        rows = self._checked(rows)
        out = np.empty((len(rows), self.context_length + 1), dtype=np.int64)
        # Row r begins at token r · C and has C + 1 of them: its last is the next row's first.
        for line, first in zip(out, (rows * self.context_length).tolist(), strict=True):
            self.read(first, line)
        return out

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out``, (length,) of any integer type, with the stream from token ``first`` on."""
        done = 0
        # side="right": the token at a shard's start is that shard's, not the one's before, and
        # empty shards, which begin at the token of the next one, are passed over.
        shard = int(np.searchsorted(self._starts, first, side="right")) - 1
        while done < len(out):
            begin = first + done - int(self._starts[shard])
            piece = self._tokens[shard][begin : begin + len(out) - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """Return for each input of some windows the number of its document, counted in the window.

        The boundary token counts as the beginning of the document that it precedes; a separator
        text as the end of the one it follows.

        Returns:
            (N, context_length) int32: 0, 0, 1, …

        Raises:
            IndexError: a row outside 0 to ``len(self) - 1``.
        """
        rows = self._checked(rows)
        begins = np.zeros((len(rows), self.context_length), dtype=np.int32)
        for line, first in zip(begins, (rows * self.context_length).tolist(), strict=True):
            self._mark(line, first)
        return np.cumsum(begins, axis=1, dtype=np.int32)

    def _mark(self, line: np.ndarray, first: int) -> None:
        """Set 1 where a document begins in the inputs from ``first`` on, past their own first."""
        # Offsets say where the text of a document begins; with a boundary token the document begins
        # one token before, at offset - lead. So offsets first + 1 + lead to first + C - 1 + lead
        # are of documents that begin at inputs 1 to C - 1; input 0 is of document 0 in any case.
        low, high = first + 1 + self._lead, first + len(line) + self._lead
        shard = int(np.searchsorted(self._starts, low, side="right")) - 1
        while shard < len(self._tokens) and self._starts[shard] < high:
            base = int(self._starts[shard])
            offsets = self._offsets[shard]
            # The bounds have the array's type: others would copy a mapped array to compare.
            bounds = np.array([max(low - base, 0), high - base], dtype=OFFSET_TYPE)
            begin, end = np.searchsorted(offsets, bounds)
            line[offsets[begin:end].astype(np.int64) + (base - self._lead - first)] = 1
            shard += 1

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(
                f"split {self.name!r} has windows 0 to {len(self) - 1}, "
                f"asked for {rows.min()} to {rows.max()}"
            )
        return rows
