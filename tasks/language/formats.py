"""Read documents from a stream of bytes: plain text, JSON lines, Parquet; gzip and zstd.

Every reader takes an open binary file and a name for messages, so that a file on this machine and
one that is streamed from a hub go the same way.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

from tasks.base.lines import MARK, parse_json, shortened
from tasks.base.options import OptionError, nearest
from tasks.language.documents import Document
from tasks.language.extras import need

TEXT, JSON_LINES, PARQUET = "text", "json lines", "parquet"

FORMATS = {
    ".txt": TEXT,
    ".md": TEXT,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON_LINES,
    ".parquet": PARQUET,
}
COMPRESSIONS = (".gz", ".zst")
"""Suffixes that may follow that of text and of JSON lines."""

READ_BYTES = 1 << 20
BATCH_ROWS = 256
BLANK_LINES = re.compile(rb"(?:(?<=\n)|\A)(?:[ \t\r\f\v]*\n)+")
"""Runs of lines with nothing but white space, each with its end: they separate paragraphs."""


def describe_formats() -> str:
    """Return the suffixes that are read, for messages."""
    return f"{', '.join(FORMATS)} (text and JSON also {' or '.join(COMPRESSIONS)})"


def format_of(name: str) -> tuple[str, str] | None:
    """Return the format and the compression (or ``""``) that a file's name says; None: unknown."""
    name = name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    name = name.removesuffix(compression)
    kind = next((FORMATS[suffix] for suffix in FORMATS if name.endswith(suffix)), None)
    if kind is None or (kind == PARQUET and compression):
        return None
    return kind, compression


def read_text(
    stream: BinaryIO,
    name: str,
    document_bytes: int,
    start: int = 0,
    end: int | None = None,
    *,
    paragraphs: bool = False,
) -> Iterator[Document]:
    """Yield a text in documents of at most ``document_bytes``, each cut after a line where it can.

    A text up to that length is one document. With ``paragraphs``, each run of lines between blank
    ones is a document, and the blank ones are left out. With ``start`` and ``end``, only the lines
    that begin between these offsets are read.

    Raises:
        ValueError: bytes that are not UTF-8; the message has the offset of the first.
    """
    position = _seek_line(stream, start) if start else 0
    stop = None if end is None else _seek_line(stream, end)
    if end is not None:
        stream.seek(position)
    rest = b""
    while True:
        # One byte more than a document may have tells whether this is the last one.
        wanted = document_bytes + 1 - len(rest)
        if stop is not None:
            wanted = min(wanted, stop - position - len(rest))
        block = rest + stream.read(wanted)
        if not block:
            return
        cut = len(block)
        if cut > document_bytes:
            cut = _text_border(block[:document_bytes], paragraphs)
        for first, last in _paragraphs(block[:cut]) if paragraphs else [(0, cut)]:
            place = position + first
            text = decode_utf8(block[first:last], name, place)
            if text:
                yield Document(text, name if place == 0 else f"{name}@{place}")
        position += cut
        rest = block[cut:]


def _paragraphs(block: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the paragraphs of a text begin and end."""
    first = 0
    for blank in BLANK_LINES.finditer(block):
        if first < blank.start():
            yield first, blank.start()
        first = blank.end()
    if block[first:].strip():
        yield first, len(block)


def _text_border(block: bytes, paragraphs: bool) -> int:
    """Return where to cut a text that is too long for one document.

    With ``paragraphs`` after the last blank line, else after the last line end, else before the
    last character.
    """
    if paragraphs:
        blank = max((match.end() for match in BLANK_LINES.finditer(block)), default=0)
        if blank:
            return blank
    line_end = block.rfind(b"\n") + 1
    if line_end:
        return line_end
    cut = len(block)
    while cut > 1 and block[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return cut - 1 if cut > 1 and block[cut - 1] >= 0xC0 else len(block)


def _seek_line(stream: BinaryIO, offset: int) -> int:
    """Move to the first line that begins at an offset or after it, and return where that is."""
    stream.seek(offset - 1)
    stream.readline()
    return stream.tell()


def read_json_lines(
    stream: BinaryIO, name: str, text_field: str, start: int = 0, end: int | None = None
) -> Iterator[Document]:
    """Yield the text of one JSON object a line; empty lines and empty texts are passed over.

    With ``start`` and ``end``, only the lines that begin between these offsets are read.

    Raises:
        ValueError: a line that is not UTF-8, not a JSON object, or without text in the field.
    """
    position = _seek_line(stream, start) if start else 0
    for number, line in enumerate(stream, start=1):
        if end is not None and position >= end:
            return
        # Past the first part of a file, a line has an offset: its number would need a read from 0.
        place = f"{name}@{position}" if start else f"{name}:{number}"
        if line.strip():
            text = _text_of_line(decode_utf8(line, name, position), place, text_field)
            if text:
                yield Document(text, place)
        position += len(line)


def _text_of_line(line: str, place: str, text_field: str) -> str:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{place}: not a JSON object on one line ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object on each line, found {_words(row)}")
    if line.count(f'"{text_field}"') > 1:  # the parser keeps the last of equal keys
        keys = [key for key, _ in parse_json(line, object_pairs_hook=list)]
        if keys.count(text_field) > 1:
            raise ValueError(f"{place}: field {text_field!r} is given twice")
    return text_of_row(row, place, text_field)


def text_of_row(row: dict[str, Any], place: str, text_field: str) -> str:
    """Return the text of a row, where half a surrogate pair (JSON can have one) is U+FFFD.

    Raises:
        OptionError: the row has no such field.
        ValueError: the field holds no text.
    """
    if text_field not in row:
        raise OptionError(
            "task.text_field",
            text_field,
            f"no such field in {place}; it has {_listed(row)}{nearest(text_field, row)}",
        )
    text = row[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{place}: field {text_field!r} holds {_words(text)}, expected text")
    return whole_text(text)


def _listed(names: Iterable[str]) -> str:
    shown = [shortened(name) for name in names]
    more = ["…"] if len(shown) > 20 else []
    return ", ".join(shown[:20] + more) or "none"


def whole_text(text: str) -> str:
    """Return text that can be written as UTF-8: lone surrogates become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _words(value: object) -> str:
    names = {type(None): "null", list: "a list", dict: "an object", str: "text"}
    if isinstance(value, bool):
        return "true or false"
    return names.get(type(value), "a number")


def decode_utf8(data: bytes, name: str, position: int) -> str:
    """Return the text of some bytes that lie at ``position`` of a file, without a leading mark.

    Raises:
        ValueError: they are not UTF-8; the message has the offset of the first wrong byte.
    """
    try:
        text = data.decode("utf-8")
        return text.removeprefix(MARK) if position == 0 else text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: not UTF-8: byte 0x{data[error.start]:02x} at offset {position + error.start}"
        ) from None


def read_parquet(
    stream: BinaryIO, name: str, text_field: str, row_groups: Sequence[int] | None = None
) -> Iterator[Document]:
    """Yield one column of a Parquet file, some rows of a row group at a time.

    Raises:
        OptionError: the file has no such column.
        ValueError: a damaged file, or a column or a row that holds no text.
    """
    pyarrow = need("pyarrow", "reading Parquet")
    file = open_parquet(stream, name)
    schema = file.schema_arrow
    if text_field not in schema.names:
        raise OptionError(
            "task.text_field",
            text_field,
            f"no such column in {name}; it has {_listed(schema.names)}"
            f"{nearest(text_field, schema.names)}",
        )
    kind = schema.field(text_field).type
    inner = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(inner) or pyarrow.types.is_large_string(inner)):
        raise ValueError(f"{name}: column {text_field!r} holds {kind}, expected text")
    for group in range(file.num_row_groups) if row_groups is None else row_groups:
        row, expected = 0, file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=[text_field], use_threads=False
            ):
                for text in batch.column(0).to_pylist():
                    place = f"{name}:{group}:{row}"
                    if text is None:
                        raise ValueError(f"{place}: column {text_field!r} holds null here")
                    if text:
                        yield Document(text, place)
                    row += 1
        except UnicodeDecodeError:
            raise ValueError(
                f"{name}: not UTF-8: row group {group}, at or soon after row {row}"
            ) from None
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}: damaged Parquet file: row group {group}: {reason}") from None
        if row != expected:
            raise ValueError(
                f"{name}: damaged Parquet file: row group {group} has {row} rows of {expected}"
            )


def open_parquet(stream: BinaryIO, name: str) -> Any:
    """Return a ``pyarrow.parquet.ParquetFile``.

    Raises:
        ValueError: the file is damaged, or not a Parquet file.
    """
    pyarrow = need("pyarrow", "reading Parquet")
    try:
        file = need("pyarrow.parquet", "reading Parquet").ParquetFile(stream)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: damaged, or not a Parquet file ({reason})") from None
    # Nothing protects the list of row groups but the number of rows beside it.
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if sum(groups) != file.metadata.num_rows:
        raise ValueError(
            f"{name}: damaged Parquet file: {sum(groups)} rows in its row groups, and "
            f"{file.metadata.num_rows} in all"
        )
    return file


def decompressed(stream: BinaryIO, compression: str) -> BinaryIO:
    """Return the decompressed content of a stream; reading damaged data raises one of `DAMAGES`."""
    if compression == ".gz":
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=stream), READ_BYTES))
    if compression == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Zstandard(stream), READ_BYTES))
    return stream


class _Zstandard(io.RawIOBase):
    """The content of zstd frames; unlike the library's own reader, it notices a missing end."""

    def __init__(self, stream: BinaryIO) -> None:
        library = need("zstandard", "reading .zst")
        # 2 GB: files made with --long=31 declare such a window, small as they may be.
        self._context = library.ZstdDecompressor(max_window_size=1 << 31)
        self._frame = self._context.decompressobj()
        self._error = library.ZstdError
        self._stream, self._pending, self._between_frames = stream, b"", True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            data = self._frame.unused_data if self._frame.eof else b""
            data = data or self._stream.read(1 << 16)
            if not data:
                if self._between_frames:
                    return 0
                raise EOFError("the file ends before its content does")
            if self._frame.eof:
                self._frame = self._context.decompressobj()
            try:
                self._pending = self._frame.decompress(data)
            except self._error as error:
                raise OSError(str(error)) from None
            self._between_frames = self._frame.eof and not self._frame.unused_data
        taken = self._pending[: len(buffer)]
        self._pending = self._pending[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


DAMAGES = (EOFError, zlib.error, OSError)
"""Exceptions that reading a damaged compressed stream raises."""
