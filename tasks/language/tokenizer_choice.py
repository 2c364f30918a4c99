"""The tokenizer that the options of a task ask for: bytes, trained on the corpus, or read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.base.data_files import expand_user
from tasks.base.options import OptionError
from tasks.base.storage import sha256_of_file
from tasks.base.text import Tokenizer
from tasks.language.documents import Part
from tasks.language.packed_part import Boundary
from tasks.language.splitting import SplitRule, digest
from tasks.language.tokenizers import Bytes, find_tokenizer, load_tokenizer
from tasks.language.train_tokenizer import Learnt, train_tokenizer


@dataclass(frozen=True)
class TokenizerChoice:
    """The options of ``Language`` that decide its tokenizer, under their names there."""

    tokenizer: str
    vocabulary_size: int
    normalization: Literal["keep", "paper"]
    tokenizer_documents: int
    boundary: Boundary

    def recipe(self) -> dict[str, Any]:
        """Return what decides the tokenizer, beside the corpus, as plain data.

        Raises:
            OptionError: as ``read``.
        """
        if self.tokenizer == "bytes":
            return {"bytes": True}
        if self.tokenizer != "bpe":
            return {"sha256": self.read().sha256()}
        return {
            "bpe": self.vocabulary_size,
            "normalization": self.normalization,
            "documents": self.tokenizer_documents,
            **({"long_lines": "cut"} if self.normalization == "keep" else {}),
        }

    def num_ids(self) -> int:
        """Return the number of ids that the tokenizer has, or will have when it is trained.

        Raises:
            OptionError: as ``read``.
        """
        if self.tokenizer == "bpe":
            return self.vocabulary_size
        return (Bytes() if self.tokenizer == "bytes" else self.read()).vocabulary_size

    def read(self) -> Tokenizer:
        """Read the tokenizer from the file that the option names.

        Raises:
            OptionError: the file cannot be read, or its tokenizer has no boundary token, which
                ``boundary: token`` needs.
        """
        path = expand_user(self.tokenizer, "task.tokenizer")
        try:
            tokenizer = load_tokenizer(path)
        except ValueError as error:
            raise OptionError("task.tokenizer", self.tokenizer, str(error)) from None
        if self.boundary == "token" and tokenizer.boundary_id is None:
            raise OptionError(
                "task.boundary",
                self.boundary,
                f"{self.tokenizer} has no boundary token; expected boundary: paper or none",
            )
        return tokenizer

    def make(
        self,
        folder: Path,
        parts: list[Part],
        rule: SplitRule,
        *,
        on_learnt: Callable[[Learnt], None],
    ) -> Tokenizer:
        """Return the tokenizer, trained on the corpus if it has to be.

        Args:
            folder: where an interrupted packing may have left the trained one.
            parts: the corpus.
            rule: how its documents are divided; only training text is trained on.
            on_learnt: gets what the tokenizer has learnt from, if it is trained here.

        Raises:
            OptionError: as ``read``, or too little text for so large a vocabulary.
            ValueError: a document cannot be read.
        """
        if self.tokenizer == "bytes":
            return Bytes()
        if self.tokenizer != "bpe":
            return self.read()
        if folder.is_dir() and any(folder.iterdir()):
            return load_tokenizer(folder)
        return train_tokenizer(
            train_texts(parts, rule, self.tokenizer_documents),
            vocabulary_size=self.vocabulary_size,
            normalization=self.normalization,
            boundary=self.boundary == "token",
            on_learnt=on_learnt,
        )


def unread(learnt: Learnt, documents: int) -> str | None:
    """Return in words what a limit has kept a tokenizer from learning from; None: nothing.

    Args:
        learnt: what it has learnt from.
        documents: those of train, duplicates included.
    """
    left = documents - learnt.documents
    if left <= 0:
        return None
    limit = f"{learnt.stopped_by:,} characters" if learnt.stopped_by else "task.tokenizer_documents"
    return (
        f"the tokenizer has learnt from the first {learnt.documents:,} of {documents:,} documents "
        f"of train, {learnt.characters:,} characters: the limit of {limit} left {left:,} unread"
    )


def tokenizer_sha256(option: str) -> str:
    """Return the SHA-256 of the tokenizer's file that the option ``tokenizer`` names.

    Raises:
        OptionError: there is no such file.
    """
    path = expand_user(option, "task.tokenizer")
    try:
        return sha256_of_file(find_tokenizer(path))
    except (ValueError, OSError) as error:
        raise OptionError("task.tokenizer", option, str(error)) from None


def train_texts(parts: Iterable[Part], rule: SplitRule, count: int) -> Iterator[str]:
    """Yield the first ``count`` documents that are not held out."""
    for part in parts:
        if "train" not in rule.may_reach(part.split):
            continue
        for document in part.documents():
            if rule.split(part.split, digest(document.text)) == "train":
                yield document.text
                count -= 1
                if not count:
                    return
