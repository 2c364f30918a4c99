"""Text to token ids and back: bytes, SentencePiece, and any ``tokenizer.json``.

A tokenizer is one file. It is saved as the bytes that it was read from, so its SHA-256 names it; a
pickled one carries those bytes and is built from them again in the other process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.base import options
from tasks.base.lines import shortened
from tasks.base.text import Tokenizer
from tasks.language.extras import need

BOUNDARY_PIECE = "<document>"
"""The boundary's piece in tokenizers that are trained here; text cannot produce it."""
BOUNDARY_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""Special tokens that serve as the boundary in a ``tokenizer.json``; the first that is there."""

MAX_IDS = 1 << 24
"""Most ids of a ``tokenizer.json``; the largest that are published have a sixtieth of them."""


class Bytes(Tokenizer):
    """UTF-8 bytes, ids 0 to 255, and the boundary 256.

    >>> tokenizer = Bytes()
    >>> tokenizer.encode("é")
    [195, 169]
    >>> tokenizer.decode([195, 169, tokenizer.boundary_id])
    'é'
    """

    FILE = "tokenizer.bytes"
    CONTENT = b"UTF-8 bytes are ids 0 to 255; 256 is the document boundary.\n"

    vocabulary_size = 257
    boundary_id = 256

    def __init__(self, data: bytes = CONTENT) -> None:
        if data != self.CONTENT:
            raise ValueError("not the file that a bytes tokenizer writes")
        super().__init__(data)

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of a text."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        return bytes(number for number in ids if number < 256).decode("utf-8", "replace")


class SentencePiece(Tokenizer):
    """A SentencePiece model: one that is trained here, or anyone's ``tokenizer.model``.

    Only the models that are trained here have a boundary. The authors' own have none: their code
    puts no id between documents, and their ``</s>`` was never trained.
    """

    FILE = "tokenizer.model"
    SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
    """How SentencePiece writes a space: a text that holds the character itself must escape it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        if not {1, 2, 3} <= set(_protobuf_fields(data)):  # pieces, trainer, normaliser
            raise ValueError("not a whole SentencePiece model")
        sentencepiece = need("sentencepiece", "a SentencePiece tokenizer")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model ({error})") from None
        self.vocabulary_size = self._model.get_piece_size()
        boundary = self._model.piece_to_id(BOUNDARY_PIECE)
        self.boundary_id = boundary if self._model.is_control(boundary) else None
        # Byte pieces give back a character that no piece can: the one that stands for a space.
        # Only a model without normalisation keeps it; the others turn it into a space like any.
        pieces = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in self.SPACE.encode()]
        self._escaped_space = pieces if self._keeps_text() else None

    def _keeps_text(self) -> bool:
        probe = " a\n  \tb "
        return self._model.decode(self._model.encode(probe)) == probe

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        if self._escaped_space is None or self.SPACE not in text:
            return self._model.encode(text, num_threads=1)
        first, *others = text.split(self.SPACE)
        ids = self._model.encode(first)
        for part in others:
            ids += self._escaped_space
            ids += self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        return self._model.decode([int(number) for number in ids])


class TokenizerJson(Tokenizer):
    """Any tokenizer of the ``tokenizers`` library, as published beside most models.

    Text is text: the name of a special token in a document does not become that token. Truncation
    and padding that the file may ask for are switched off. Where there is no special token that
    ends a document, the boundary is appended after the vocabulary.
    """

    FILE = "tokenizer.json"

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        library = need("tokenizers", "a tokenizer.json")
        with _failures_in_words("not a tokenizer of the tokenizers library"), _no_panic_report():
            self._model = library.Tokenizer.from_buffer(data)
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        special = {
            token.content: number
            for number, token in self._model.get_added_tokens_decoder().items()
            if token.special
        }
        # Ids may have gaps: the size of the embedding is the largest id and one.
        ids = self._model.get_vocab(with_added_tokens=True).values()
        size = 1 + max(ids, default=-1)
        if size > MAX_IDS:
            raise ValueError(
                f"its largest id is {size - 1:,} of {len(ids):,}; expected ids below {MAX_IDS:,}, "
                "since a model has a row of weights for each"
            )
        boundary = next((special[name] for name in BOUNDARY_TOKENS if name in special), size)
        self.boundary_id = boundary
        self.vocabulary_size = max(size, boundary + 1)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without the special tokens that a template would add.

        Raises:
            ValueError: the library refuses the text, as for a token that the file lacks.
        """
        with _failures_in_words(f"{self.FILE} cannot encode {shortened(text)!r}"):
            return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids.

        Raises:
            ValueError: the library cannot decode them.
        """
        kept = [int(number) for number in ids if number != self.boundary_id]
        with _failures_in_words(f"{self.FILE} cannot decode {shortened(str(kept))}"):
            return self._model.decode(kept, skip_special_tokens=False)


@contextlib.contextmanager
def _failures_in_words(what: str) -> Iterator[None]:
    """Turn whatever the ``tokenizers`` library raises into a ValueError that begins with ``what``.

    It raises plain exceptions, and for some damaged files a panic of Rust, which is no Exception.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not isinstance(error, Exception) and not is_panic:
            raise
        reason = " ".join(str(error).split())
        if len(reason) > 300:  # it may quote the file; the place stands at its end
            reason = f"{reason[:200]} … {reason[-80:]}"
        raise ValueError(f"{what} ({reason})") from None


@contextlib.contextmanager
def _no_panic_report() -> Iterator[None]:
    """Point standard error nowhere: a panic of Rust writes there before it is an exception."""
    with contextlib.ExitStack() as later:
        with contextlib.suppress(OSError):  # there may be no standard error
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            later.callback(os.close, kept)
            later.callback(os.close, nowhere)
            later.callback(os.dup2, kept, 2)
            os.dup2(nowhere, 2)
        yield


def _protobuf_fields(data: bytes) -> list[int]:
    """Return the numbers of a message's top fields; empty where it is cut short or is no message.

    A protobuf message that is cut between two fields is one still, so a parser takes half a
    vocabulary for a whole one. SentencePiece's fields are all length-delimited messages.
    """

    def varint(position: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                return value, position

    fields, position = [], 0
    try:
        while position < len(data):
            key, position = varint(position)
            length, position = varint(position)
            position += length
            fields.append(key >> 3)
    except IndexError:
        return []
    return fields if position == len(data) else []


KINDS: dict[str, type[Tokenizer]] = {
    kind.FILE: kind for kind in (Bytes, SentencePiece, TokenizerJson)
}


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer from its file, or from a folder that holds exactly one such file.

    The suffix decides the kind: ``.model`` SentencePiece, ``.json`` the tokenizers library,
    ``.bytes`` bytes.

    Raises:
        ValueError: as ``find_tokenizer``; also a damaged file, or a package that is not installed.
    """
    path = find_tokenizer(path)
    kind = next(kind for name, kind in KINDS.items() if Path(name).suffix == path.suffix)
    try:
        return kind(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def find_tokenizer(path: Path) -> Path:
    """Return a tokenizer's file, or the one that a folder holds.

    Raises:
        ValueError: no such file, none or several in the folder, or an unknown kind.
    """
    path = Path(path)
    if path.is_dir():
        found = [name for name in KINDS if (path / name).is_file()]
        if len(found) != 1:
            raise ValueError(
                f"{path}: expected one tokenizer file ({', '.join(KINDS)}), "
                f"found {' and '.join(found) or 'none'}"
            )
        return path / found[0]
    if path.suffix not in {Path(name).suffix for name in KINDS}:
        raise ValueError(
            f"{path}: unknown kind of tokenizer; expected a folder or a file like "
            f"{', '.join(KINDS)}{options.nearest(path.name, KINDS)}"
        )
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such file{options.nearest(path.name, siblings)}")
    return path
