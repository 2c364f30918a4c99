"""The base of tasks over text: a tokenizer, and splits that are windows of a stream of tokens."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from tasks.base.storage import make_folder_atomically
from tasks.base.task import Kind, Task

TOKENIZER_FOLDER = "tokenizer"
"""Folder beside a model, or beside packed text, that holds the file of its tokenizer."""


class Tokenizer(abc.ABC):
    """Turns text into ids and back; one file on disk says all of it."""

    FILE: ClassVar[str]
    """Name of the file that it is saved as."""
    vocabulary_size: int
    """Number of ids, the boundary token's included."""
    boundary_id: int | None
    """Id of the token between documents; None where the tokenizer has none."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without any boundary token."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, by one thread: packing has a process per core."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids; boundary ids are left out."""

    def sha256(self) -> str:
        """Return the SHA-256 of the tokenizer's file, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def save(self, folder: Path) -> Path:
        """Write the tokenizer's one file into a folder, and return its path.

        Raises:
            OSError: the folder is missing, not writable or full.
        """
        path = Path(folder) / self.FILE
        path.write_bytes(self.data)
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.data,)


class TextSplit(Protocol):
    """Windows of C = ``context_length`` tokens over one stream.

    Window r is ``stream[r·C : (r + 1)·C + 1]``: C inputs and, shifted by one, C targets.
    """

    context_length: int
    num_tokens: int
    num_bytes: int
    """UTF-8 bytes of the text that the tokens stand for."""
    num_documents: int
    num_duplicates: int
    """Documents left out: their text is held out elsewhere, or occurred before."""

    def __len__(self) -> int:
        """Return the number of whole windows."""

    def windows(self, rows: np.ndarray) -> np.ndarray:
        """Return some windows, (N, C + 1) int64.

        Raises:
            IndexError: a row outside 0 to ``len(self) - 1``.
        """

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of each input's document in its window, (N, C) int32: 0, 0, 1, …

        Raises:
            IndexError: a row outside 0 to ``len(self) - 1``.
        """


class TextTask(Task[TextSplit]):
    """Base of the tasks that predict the next token of text.

    A subclass gives ``build_splits``, ``data_hash``, ``load_tokenizer`` and ``num_ids``, and has
    the three options below among its fields.
    """

    difficulty_name: ClassVar[str] = "position in the window, tokens"

    tokenizer: str
    """Name of the tokenizer, as the option gives it."""
    context_length: int
    """Tokens that a model reads at once."""
    attend_across_documents: bool
    """Whether a token sees the documents before its own in the window."""

    @property
    def kind(self) -> Kind:
        """A model predicts the next token."""
        return "language_modelling"

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer whose ids the windows hold.

        Raises:
            DataDamaged: its file is missing or changed.
        """
        raise NotImplementedError

    def num_ids(self) -> int:
        """Return the ids that a model needs; known before the text is there, too."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return the entry ``task`` of a result: also context, tokenizer and size of the data."""
        tokenizer = self.load_tokenizer()
        return {
            **super().describe(),
            "context_length": self.context_length,
            "tokenizer": {
                "name": self.tokenizer,
                "vocabulary_size": tokenizer.vocabulary_size,
                "sha256": tokenizer.sha256(),
            },
            "data": {
                name: {
                    "tokens": split.num_tokens,
                    "bytes": split.num_bytes,
                    "documents": split.num_documents,
                    "duplicates": split.num_duplicates,
                    "windows": len(split),
                }
                for name, split in self.splits().items()
            },
        }

    def save_files(self, directory: Path) -> None:
        """Write the tokenizer into ``directory/tokenizer``; one that is there is left as it is.

        Raises:
            OSError: the directory is not writable or the disk is full.
        """
        folder = directory / TOKENIZER_FOLDER
        if not folder.is_dir():
            with make_folder_atomically(folder) as draft:
                self.load_tokenizer().save(draft)
