"""Text to token ids and back: bytes, SentencePiece, and any ``tokenizer.json``."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from pathlib import Path

from tasks import options


class Tokenizer(abc.ABC):
    """Turns text into ids and back; one file on disk says all of it."""

    vocabulary_size: int
    """Number of ids, the boundary token's included."""
    boundary_id: int | None
    """Id of the token between documents; None where the tokenizer has none."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without any boundary token."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids; boundary ids are left out."""

    @abc.abstractmethod
    def sha256(self) -> str:
        """Return the SHA-256 of the tokenizer's file, in hexadecimal."""

    @abc.abstractmethod
    def save(self, folder: Path) -> Path:
        """Write the tokenizer's one file into a folder, and return its path."""


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

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of a text."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        return bytes(number for number in ids if number < 256).decode("utf-8", "replace")

    def sha256(self) -> str:
        """Return the SHA-256 of the file that says how bytes are numbered."""
        return hashlib.sha256(self.CONTENT).hexdigest()

    def save(self, folder: Path) -> Path:
        """Write ``tokenizer.bytes``."""
        path = Path(folder) / self.FILE
        path.write_bytes(self.CONTENT)
        return path


FILES = {Bytes.FILE: Bytes}


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer from its file, or from a folder that holds exactly one such file.

    Raises:
        ValueError: no such file, none or several in the folder, an unknown kind, a damaged file.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if len(found) != 1:
            raise ValueError(
                f"{path}: expected one tokenizer file ({', '.join(FILES)}), "
                f"found {', '.join(file.name for file in found) or 'none'}"
            )
        path = found[0]
    if path.name not in FILES:
        raise ValueError(
            f"{path}: unknown kind of tokenizer; expected {', '.join(FILES)}"
            f"{options.nearest(path.name, FILES)}"
        )
    if path.read_bytes() != Bytes.CONTENT:
        raise ValueError(f"{path}: damaged: not the file that a bytes tokenizer writes")
    return Bytes()
