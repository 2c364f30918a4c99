"""Train a SentencePiece BPE tokenizer on the first documents of a corpus.

``keep`` gives back every text exactly. Nothing is normalised; a newline is a piece of its own,
which no other piece contains; runs of spaces are merged like anything else; a character that is not
in the vocabulary is spelt in UTF-8 bytes. ``paper`` is the setting of the paper's code,
SentencePiece's defaults, which collapse newlines and runs of spaces into one space and lose rare
characters, and whole documents as sentences, of which those over 4192 bytes are left out.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tasks.base.options import OptionError
from tasks.language.extras import need
from tasks.language.tokenizers import BOUNDARY_PIECE, SentencePiece

MAX_CHARACTERS = 50_000_000
"""Characters that training reads by default: about 15 seconds, and 1 GB of memory."""
MAX_LINE_BYTES = 1 << 16
"""Longer lines are cut in ``keep``, between words where it can be: SentencePiece drops what is over
its limit."""
PAPER_BYTES = 4192
"""Longer documents are left out in ``paper``: SentencePiece's own limit, which the paper's code
keeps."""
RESERVED = "\N{LOWER FIVE EIGHTHS BLOCK}"
"""SentencePiece's sign for an unknown character; it drops every sentence that holds one."""

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Learnt:
    """What a tokenizer has learnt from: the first documents of a corpus."""

    documents: int
    characters: int
    stopped_by: int | None = None
    """The limit of characters that ended the reading; None: it did not."""


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocabulary_size: int = 8000,
    normalization: Literal["keep", "paper"] = "keep",
    boundary: bool = True,
    max_characters: int | None = MAX_CHARACTERS,
    on_learnt: Callable[[Learnt], None] = lambda learnt: None,
) -> SentencePiece:
    """Train a BPE tokenizer with digits split, the same bytes on every machine.

    Args:
        texts: Documents in the corpus's order; read only as far as ``max_characters`` asks.
        vocabulary_size: Number of ids, special and byte pieces and the boundary included.
        normalization: Whether text is kept as it is, or normalised as the paper's code does.
        boundary: Whether one of the ids is a document boundary that no text can produce.
        max_characters: Stop after the document that brings the total to it; None: read all.
        on_learnt: gets what was read, at the end.

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
        # Before the sentence stands a place in SentencePiece's source, and sometimes no sentence.
        reason = re.sub(r"(?s).*\] ", "", str(error)).strip()
        if reader.used == 0:
            reason = "no text to learn from" if reader.characters else "the corpus is empty"
        raise OptionError(
            "task.vocabulary_size",
            vocabulary_size,
            f"no BPE tokenizer of so many pieces from {reader.read()}: {reason or error}",
        ) from None
    reader.log()
    stopped_by = max_characters if reader.is_stopped else None
    on_learnt(Learnt(reader.number, reader.characters, stopped_by))
    return SentencePiece(model.getvalue())


class _Reader:
    """Counts what training reads and what a limit leaves out, and stops it."""

    def __init__(self, texts: Iterable[str], max_characters: int | None) -> None:
        self._texts, self._limit = texts, max_characters
        self.number = self.characters = 0
        self.used = 0
        """Sentences handed to SentencePiece that it does not drop."""
        self.cut = 0
        """Lines that were cut since they are too long."""
        self.dropped: list[int] = []
        """Characters of each document that SentencePiece drops."""
        self.is_stopped = False
        """Whether ``max_characters`` ended the reading."""
        self.error: BaseException | None = None

    def _all(self) -> Iterator[str]:
        try:
            for text in self._texts:
                self.number += 1
                self.characters += len(text)
                yield text
                if self._limit is not None and self.characters >= self._limit:
                    self.is_stopped = True
                    return
        except BaseException as error:
            self.error = error
            raise

    def documents(self) -> Iterator[str]:
        """Yield the sentences of ``paper``, whole documents."""
        for text in self._all():
            if RESERVED in text or len(text.encode("utf-8")) > PAPER_BYTES:
                self.dropped.append(len(text))
            else:
                self.used += bool(text)
            yield text

    def lines(self) -> Iterator[str]:
        """Yield the sentences of ``keep``, lines that are not too long."""
        for text in self._all():
            # A NUL is a sign of broken data to SentencePiece, and the other is its own; bytes spell
            # both when they are encoded.
            for line in text.replace("\0", "\n").replace(RESERVED, "\n").split("\n"):
                pieces = list(cut_line(line, MAX_LINE_BYTES))
                self.cut += len(pieces) > 1
                self.used += len(pieces)
                yield from pieces

    def read(self) -> str:
        """Return in words how much was read."""
        return f"{self.number:,} documents with {self.characters:,} characters"

    def log(self) -> None:
        """Log how much was read, and as a warning what was left out."""
        end = f", where the limit of {self._limit:,} ends it" if self.is_stopped else ""
        cut = f"; {self.cut:,} lines over {MAX_LINE_BYTES:,} bytes cut" if self.cut else ""
        logger.info("the tokenizer has learnt from the first %s%s%s", self.read(), end, cut)
        if self.dropped:
            logger.warning(
                "the tokenizer has not learnt from %s of %s documents, %.1f %% of the characters: "
                "over %s bytes, or with the character U+2585, which SentencePiece drops under "
                "normalization: paper",
                f"{len(self.dropped):,}",
                f"{self.number:,}",
                100 * sum(self.dropped) / self.characters,
                f"{PAPER_BYTES:,}",
            )


def cut_line(line: str, limit: int) -> Iterator[str]:
    """Yield a line in pieces of at most ``limit`` UTF-8 bytes, none for an empty one.

    A piece ends before the last space that fits, which then begins the next one, else between two
    characters.

    >>> list(cut_line("one two three", 8)), list(cut_line("ééé", 5))
    (['one two', ' three'], ['éé', 'é'])
    """
    if len(line) <= limit // 4:  # no character has more bytes
        if line:
            yield line
        return
    data, start = line.encode("utf-8"), 0
    while len(data) - start > limit:
        end = data.rfind(b" ", start + 1, start + limit + 1)
        if end < 0:
            end = start + limit
            while data[end] & 0xC0 == 0x80:
                end -= 1
        yield data[start:end].decode("utf-8")
        start = end
    if start < len(data):
        yield data[start:].decode("utf-8")
