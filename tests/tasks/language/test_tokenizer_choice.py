"""The tokenizer that options ask for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tasks.base.options import OptionError
from tasks.language.documents import Document, Part
from tasks.language.splitting import SplitRule, digest
from tasks.language.tokenizer_choice import TokenizerChoice, train_texts
from tasks.language.tokenizers import Bytes

RULE = SplitRule(0.1, 0.1)
TEXTS = [f"document {number}" for number in range(100)]


@dataclass(frozen=True)
class Texts(Part):
    """Texts in memory."""

    name: str
    texts: tuple[str, ...]
    split: str | None = None

    def documents(self):
        """Yield the texts."""
        return (Document(text) for text in self.texts)


def choice(tokenizer, boundary="token"):
    return TokenizerChoice(tokenizer, 300, "keep", 1000, boundary)


def test_only_training_documents_are_trained_on():
    parts = [Texts("a", tuple(TEXTS[:50])), Texts("b", tuple(TEXTS[50:]))]
    expected = [text for text in TEXTS if RULE.split(None, digest(text)) == "train"]
    assert 60 < len(expected) < 95
    assert list(train_texts(parts, RULE, 1000)) == expected
    assert list(train_texts(parts, RULE, 3)) == expected[:3]
    fixed = SplitRule(0.1, 0.1, frozenset({"train", "test"}))
    assert list(train_texts([Texts("c", ("x",), "test")], fixed, 3)) == []


def test_number_of_ids_and_recipe_are_known_before_anything_is_trained(tmp_path):
    path = str(Bytes().save(tmp_path))
    assert [choice(name).num_ids() for name in ("bpe", "bytes", path)] == [300, 257, 257]
    assert choice("bpe").recipe() == {
        "bpe": 300,
        "normalization": "keep",
        "documents": 1000,
        "long_lines": "cut",
    }
    assert choice("bytes").recipe() == {"bytes": True}
    assert choice(path).recipe() == {"sha256": Bytes().sha256()}


def test_a_file_that_cannot_serve_is_refused(tmp_path, monkeypatch):
    path = str(Bytes().save(tmp_path))
    with pytest.raises(OptionError, match=r"^task\.tokenizer='.*no\.model': .*no such file"):
        choice(str(tmp_path / "no.model")).recipe()
    monkeypatch.setattr(Bytes, "boundary_id", None)
    assert choice(path, boundary="paper").num_ids() == 257
    with pytest.raises(OptionError, match=r"^task\.boundary='token': .* has no boundary token"):
        choice(path).num_ids()
