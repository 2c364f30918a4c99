"""The reader of lines: what ends one, which number it has, and what is no text."""

from __future__ import annotations

import io

import pytest

from tasks.base.lines import (
    decoded_lines,
    lines_of,
    numbered_lines,
    parse_json,
    parse_json_object,
    shown,
    text_of,
)

ODD = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b"
"""Everything that ``str.splitlines`` splits at but the two real line ends."""


def test_only_line_feeds_end_lines_and_blank_ones_count():
    data = f"\ufeff{ODD}\r\n\n {ODD}\rx\n".encode()
    expected = [(1, ODD), (2, ""), (3, f" {ODD}\rx")]
    assert list(numbered_lines(text_of(data, "f"))) == expected
    assert list(decoded_lines(io.BytesIO(data), "f")) == expected
    assert list(decoded_lines(io.BytesIO(data.removesuffix(b"\n")), "f")) == expected


def test_a_mark_is_left_out_at_the_start_alone():
    data = "\ufeff\ufeffa\n\ufeffb".encode()
    expected = [(1, "\ufeffa"), (2, "\ufeffb")]
    assert list(numbered_lines(text_of(data, "f"))) == expected
    assert list(decoded_lines(io.BytesIO(data), "f")) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\0\n", r"^f:2: a binary file \(zero byte\), expected text in UTF-8$"),
        (b"a\n\nb\xe9\n", r"^f:3: byte 0xe9 is not UTF-8$"),
        (b"a\n\xed\xa0\x80", r"^f:2: byte 0xed is not UTF-8$"),  # a surrogate
        ("a".encode("utf-16"), r"^f:1: looks like UTF-16, expected UTF-8$"),
        ("a".encode("utf-32"), r"^f:1: looks like UTF-32, expected UTF-8$"),
    ],
)
def test_what_is_no_text_is_refused_at_its_line(data, message):
    with pytest.raises(ValueError, match=message):
        text_of(data, "f")
    with pytest.raises(ValueError, match=message):
        list(decoded_lines(io.BytesIO(data), "f"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": }', "^column 7: .*, expected a JSON object$"),
        ("[" * 100_000, "^nested too deeply"),
        ('{"a": ' * 100_000, "^nested too deeply"),
        ("-" + "1" * 400, "^a number of 401 digits"),
        ("1" * 100_000, "^a number of 100,000 digits"),
    ],
)
def test_json_that_cannot_be_read_is_one_plain_error(line, message):
    for parse in (parse_json, parse_json_object):
        with pytest.raises(ValueError, match=message):
            parse(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3", "^'3': expected a JSON object$"),
        ('{"a": 1, "a": 2}', "^'a': given twice$"),
        (r'{"a": {"b": ["\udfff"]}}', r"^'a' holds \\udfff, half a surrogate pair"),
        (r'{"\ud800": 1}', r"^a key holds \\ud800"),
    ],
)
def test_a_json_object_holds_whole_text(line, message):
    with pytest.raises(ValueError, match=message):
        parse_json_object(line)


@pytest.mark.parametrize("depth", [300, 900, 950, 990, 5000])
def test_deep_json_is_read_or_refused_at_every_depth(depth):
    """How deep the parser of JSON goes, and how deep other functions go, differs with Python."""
    nested = "[" * depth + r'"\ud800"' + "]" * depth
    with pytest.raises(ValueError, match=r"^nested too deeply|^'a' holds \\ud800"):
        parse_json_object(f'{{"a": {nested}}}')
    value: list = []
    for _ in range(depth):
        value = [value]
    assert shown(value) in ("[" * 57 + "...", "a deeply nested value")


def test_a_file_whose_lines_end_in_carriage_returns_alone_is_refused():
    with pytest.raises(ValueError, match=r"^f:1: lines end in a carriage return alone"):
        lines_of(b"a\tb\rc\td\r", "f")
    assert lines_of(b"a\rb\n\rc", "f") == [(1, "a\rb"), (2, "\rc")]


def test_a_whole_surrogate_pair_is_a_character():
    assert parse_json_object(r'{"a": "\ud83d\ude00\u0000"}') == {"a": "😀\0"}
