"""The base of tasks over text, by a task whose text is in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base.text import TextTask
from tasks.language.tokenizers import Bytes


class Memory:
    """One split of text in memory."""

    def __init__(self, text: str, context_length: int) -> None:
        self.stream = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        self.context_length = context_length
        self.num_tokens = self.num_bytes = len(self.stream)
        self.num_documents, self.num_duplicates = 1, 0

    def __len__(self) -> int:
        return (self.num_tokens - 1) // self.context_length

    def windows(self, rows):
        return self.stream[rows[:, None] * self.context_length + np.arange(self.context_length + 1)]

    def documents(self, rows):
        return np.zeros((len(rows), self.context_length), np.int32)


@dataclass(frozen=True, kw_only=True)
class Abc(TextTask):
    """The alphabet, again and again."""

    name: ClassVar[str] = "abc"

    tokenizer: str = "bytes"
    """Always bytes."""
    context_length: int = 4
    """Tokens that a model reads at once."""
    attend_across_documents: bool = True
    """There is one document."""

    def build_splits(self):
        return {name: Memory("abcdefghij" * n, self.context_length) for name, n in SIZES.items()}

    def load_tokenizer(self):
        return Bytes()

    def num_ids(self):
        return 257

    def data_hash(self):
        return hashlib.sha256(b"abc").hexdigest()


SIZES = {"train": 10, "test": 1}


def test_a_result_has_context_tokenizer_and_size_of_the_data():
    described = Abc().describe()
    assert (described["name"], described["kind"]) == ("abc", "language_modelling")
    assert described["context_length"] == 4
    assert described["tokenizer"]["sha256"] == Bytes().sha256()
    assert described["data"]["train"] == {
        "tokens": 100,
        "bytes": 100,
        "documents": 1,
        "duplicates": 0,
        "windows": 24,
    }
    assert described["data"]["test"]["windows"] == 2


def test_the_tokenizer_is_saved_once_beside_a_model(tmp_path):
    Abc().save_files(tmp_path)
    (file,) = (tmp_path / "tokenizer").iterdir()
    assert file.read_bytes() == Bytes.CONTENT
    file.write_bytes(b"kept")
    Abc().save_files(tmp_path)
    assert file.read_bytes() == b"kept"


def test_splits_are_named_and_nothing_is_missing():
    task = Abc()
    assert task.split_names() == ["train", "test"]
    assert task.missing() is None
    assert task.split("test").windows(np.array([1])).tolist() == [[*b"efghi"]]
