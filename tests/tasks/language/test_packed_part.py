"""One part of a corpus: its ids, its record, and its held-out documents on disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tasks.base.text import TOKENIZER_FOLDER
from tasks.language.documents import Document, Part
from tasks.language.packed_part import (
    PARTS,
    HeldOut,
    Recipe,
    encode_documents,
    pack_part,
    read_record,
)
from tasks.language.splitting import SplitRule, digest
from tasks.language.tokenizers import Bytes

U2 = np.dtype("<u2")


@dataclass(frozen=True)
class Texts(Part):
    """Texts in memory."""

    name: str
    texts: tuple[str, ...]

    def documents(self):
        """Yield the texts."""
        return (Document(text) for text in self.texts)


def test_what_stands_between_documents():
    texts = ["ab", "", "c"]
    assert encode_documents(texts, Bytes(), "token", "|") == [[97, 98, 256], [256], [99, 256]]
    assert encode_documents(texts, Bytes(), "paper", "|") == [[97, 98, 124], [124], [99, 124]]
    assert encode_documents(texts, Bytes(), "none", "|") == [[97, 98], [], [99]]


@pytest.fixture
def folder(tmp_path):
    for name in (TOKENIZER_FOLDER, PARTS):
        (tmp_path / name).mkdir()
    Bytes().save(tmp_path / TOKENIZER_FOLDER)
    return tmp_path


def test_held_out_documents_come_back_with_size_and_digest(folder):
    rows = [
        (np.array([1, 2, 256], "<u4"), 2, digest("ab")),
        (np.array([256], "<u4"), 0, digest("")),
    ]
    HeldOut.collect({"test": rows}).write(folder, 7)
    held = HeldOut.read(folder, 7)
    assert [held.document("test", index).tolist() for index in (0, 1)] == [[1, 2, 256], [256]]
    assert held.sizes["test"].tolist() == [2, 0]
    assert [row.tobytes() for row in held.digests["test"]] == [digest("ab"), digest("")]


def test_a_record_counts_for_its_part_and_tokenizer_while_its_files_are_there(folder):
    part = Texts("part", tuple(f"text {number}" for number in range(60)))
    recipe = Recipe(SplitRule(0.2, 0.1), "token", "")
    sha256 = Bytes().sha256()
    record = pack_part(folder, 3, part, recipe, sha256, first=[256])
    assert record.train.name == "train/00003"
    held = HeldOut.read(folder, 3)
    assert record.train.documents + sum(map(len, held.sizes.values())) == 60
    assert read_record(folder, 3, part, sha256, U2) == record
    assert read_record(folder, 4, part, sha256, U2) is None
    assert read_record(folder, 3, part, "another tokenizer", U2) is None
    assert read_record(folder, 3, Texts("other", ()), sha256, U2) is None
    (folder / "train/00003.tokens").unlink()
    assert read_record(folder, 3, part, sha256, U2) is None


def test_an_id_beyond_the_vocabulary_is_refused_with_the_document(folder, monkeypatch):
    monkeypatch.setattr(Bytes, "vocabulary_size", 100)
    part = Texts("part", ("é",))
    recipe = Recipe(SplitRule(0.2, 0.1), "none", "")
    with pytest.raises(ValueError, match="gives id 195, and says that it has 100"):
        pack_part(folder, 0, part, recipe, "of a tokenizer not read before", first=[])
