r"""The one reader of lines for text that users give: task files, corpora, prompts, standard input.

Only a line feed ends a line, and a carriage return before it belongs to the end; form feeds,
U+0085 and U+2028, at which Python's ``splitlines`` splits, are text. A byte order mark at the start
is left out. What is not text is refused at ``file:line``:

>>> list(numbered_lines(text_of("\ufeffone\x0c\r\n\ntwo\u2028\n".encode(), "a.txt")))
[(1, 'one\x0c'), (2, ''), (3, 'two\u2028')]
>>> text_of(b"one\n\xff", "a.txt")
Traceback (most recent call last):
ValueError: a.txt:2: byte 0xff is not UTF-8
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
"""Suffixes of files with a JSON object a line."""
MARK = "\ufeff"
"""Byte order mark, which some editors write at the start of a file."""
LINE_END = b"\n"
MAX_DIGITS = 308
"""Digits of a whole number in JSON: with no more it fits into a float."""

_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of other encodings; those of UTF-32 first, since one begins like UTF-16's."""


def text_of(data: bytes, name: str, first_line: int = 1) -> str:
    """Return the text of some bytes, without a byte order mark before it.

    Args:
        data: UTF-8.
        name: of the file, for messages.
        first_line: number of the first line; that of a later one has no mark to leave out.

    Raises:
        ValueError: another encoding, a zero byte, or bytes that are not UTF-8; with file and line.
    """

    def place(position: int) -> str:
        return f"{name}:{first_line + data.count(LINE_END, 0, position)}"

    for mark, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(mark) and first_line == 1:
            raise ValueError(f"{place(0)}: looks like {encoding}, expected UTF-8")
    if b"\0" in data:
        where = place(data.index(0))
        raise ValueError(f"{where}: a binary file (zero byte), expected text in UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place(error.start)}: byte 0x{data[error.start]:02x} is not UTF-8"
        ) from None
    return text.removeprefix(MARK) if first_line == 1 else text


def lines_of(data: bytes, name: str) -> list[tuple[int, str]]:
    """Return every line of a file with its number, from 1, without its end.

    Raises:
        ValueError: as ``text_of``; also a file whose lines all end in a lone carriage return, which
            would be one line.
    """
    if data.count(b"\r") > 1 and LINE_END not in data:
        raise ValueError(f"{name}:1: lines end in a carriage return alone, expected a line feed")
    return list(numbered_lines(text_of(data, name)))


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield every line with its number, from 1, without its end; a blank line is one, too."""
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def decoded_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a binary stream as they come, such as ``sys.stdin.buffer``.

    Raises:
        ValueError: as ``text_of``, when the line is reached.
    """
    for number, line in enumerate(stream, start=1):
        yield number, text_of(line, name, number).removesuffix("\n").removesuffix("\r")


def parse_json(line: str, **hooks: Any) -> Any:
    """Return the value of one line of JSON; ``hooks`` are those of ``json.loads``.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a number of very many digits.
    """
    try:
        return json.loads(line, parse_int=_whole_number, **hooks)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: {error.msg}, expected a JSON object") from None
    except RecursionError:
        raise ValueError("nested too deeply, expected a flat JSON object") from None


def parse_json_object(line: str) -> dict[str, Any]:
    """Return the JSON object of one line, all of whose text can be written as UTF-8.

    Raises:
        ValueError: as ``parse_json``; also a value of another kind, a key given twice, or half a
            surrogate pair, which JSON can spell and no file can hold.
    """
    record = parse_json(line, object_pairs_hook=_without_repeats)
    if not isinstance(record, dict):
        raise ValueError(f"{shortened(line)!r}: expected a JSON object")
    if "\\u" in line:  # only an escape can spell one
        _check_whole(record)
    return record


def shortened(text: str) -> str:
    """Return the beginning of a text, for messages."""
    return text if len(text) <= 60 else text[:57] + "..."


def shown(value: Any) -> str:
    """Return a value as Python writes it, for messages; long and deeply nested ones are cut."""
    try:
        return shortened(repr(value))
    except RecursionError:
        return "a deeply nested value"


def lone_surrogate(text: str) -> str | None:
    r"""Return the first half of a surrogate pair that stands alone, as ``\ud83d``; None: no such.

    JSON has them where text was cut in the middle of a character, and Python makes them of the
    bytes of a command line that are not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def _check_whole(record: dict[str, Any]) -> None:
    """Raise ValueError for half a surrogate pair in a key or in a value, however deep."""
    waiting: list[tuple[str, Any]] = [(repr(shortened(key)), record[key]) for key in record]
    waiting += [("a key", key) for key in record]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(name, item) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, str) and (half := lone_surrogate(value)):
            raise ValueError(f"{name} holds {half}, half a surrogate pair: text was cut there")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, expected at most {MAX_DIGITS}")
    return int(digits)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"{shortened(key)!r}: given twice")
        record[key] = value
    return record
