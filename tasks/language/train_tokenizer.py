"""Train a SentencePiece BPE tokenizer on the first documents of a corpus.

``keep`` gives back every text exactly. Nothing is normalised; a newline is a piece of its own,
which no other piece contains; runs of spaces are merged like anything else; a character that is not
in the vocabulary is spelt in UTF-8 bytes. ``paper`` is the setting of the paper's code,
SentencePiece's defaults, which collapse newlines and runs of spaces into one space and lose rare
characters, and whole documents as sentences, of which those over 4192 bytes are left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from tasks.base.options import OptionError
from tasks.language.extras import need
from tasks.language.tokenizers import BOUNDARY_PIECE, SentencePiece

MAX_CHARACTERS = 50_000_000
"""Characters that training reads by default: about 15 seconds, and 1 GB of memory."""
MAX_LINE_BYTES = 1 << 16
"""Longer lines are left out in ``keep``: they are data rather than text, and slow."""

# SentencePiece writes its number of threads into the model: with one, every machine writes the same
# bytes.
_COMMON: dict[str, Any] = {
    "model_type": "bpe",
    "split_digits": True,
    "num_threads": 1,
    "minloglevel": 2,
}
_KEEP: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "byte_fallback": True,
    "user_defined_symbols": ["\n"],
    "max_sentence_length": MAX_LINE_BYTES,
    # The unknown piece and the boundary are the only special ones.
    "bos_id": -1,
    "eos_id": -1,
}


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocabulary_size: int = 8000,
    normalization: Literal["keep", "paper"] = "keep",
    boundary: bool = True,
    max_characters: int | None = MAX_CHARACTERS,
) -> SentencePiece:
    """Train a BPE tokenizer with digits split, the same bytes on every machine.

    Args:
        texts: Documents in the corpus's order; read only as far as ``max_characters`` asks.
        vocabulary_size: Number of ids, special and byte pieces and the boundary included.
        normalization: Whether text is kept as it is, or normalised as the paper's code does.
        boundary: Whether one of the ids is a document boundary that no text can produce.
        max_characters: Stop after the document that brings the total to it; None: read all.

    Raises:
        OptionError: no text, or too little of it for so large a vocabulary.
    """
    sentencepiece = need("sentencepiece", "tokenizer: bpe")
    reader = _Reader(texts, max_characters)
    sentences = reader.lines() if normalization == "keep" else reader.documents()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=vocabulary_size,
            **({"control_symbols": [BOUNDARY_PIECE]} if boundary else {}),
            **_COMMON,
            **(_KEEP if normalization == "keep" else {}),
        )
    except RuntimeError as error:
        if reader.error is not None:  # SentencePiece hides what its input raises
            raise reader.error from None
        # Before the sentence stands a place in SentencePiece's source.
        reason = (
            "the corpus is empty" if reader.characters == 0 else re.sub(r".*\] ", "", str(error))
        )
        raise OptionError(
            "task.vocabulary_size",
            vocabulary_size,
            f"no BPE tokenizer of so many pieces from {reader.number} documents with "
            f"{reader.characters:,} characters: {reason}",
        ) from None
    return SentencePiece(model.getvalue())


class _Reader:
    """Counts what training reads, and stops it."""

    def __init__(self, texts: Iterable[str], max_characters: int | None) -> None:
        self._texts, self._limit = texts, max_characters
        self.number = self.characters = 0
        self.error: BaseException | None = None

    def documents(self) -> Iterator[str]:
        try:
            for text in self._texts:
                self.number += 1
                self.characters += len(text)
                yield text
                if self._limit is not None and self.characters >= self._limit:
                    return
        except BaseException as error:
            self.error = error
            raise

    def lines(self) -> Iterator[str]:
        for text in self.documents():
            # A NUL is a sign of broken data to SentencePiece; bytes spell it when it is encoded.
            yield from (line for line in text.replace("\0", "\n").split("\n") if line)
