"""Prompts as users give them: what ends one, which line is wrong, what is no text."""

from __future__ import annotations

import doctest
import io
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runners.config.schema import ConfigError
from runners.scoring import prompts
from runners.scoring.prompts import given_prompt, read_prompts, typed_prompts


def test_examples_of_the_docstrings():
    result = doctest.testmod(prompts)
    assert (result.failed, result.attempted) == (0, 1)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", "abc\n\nd e\n", ["abc", "d e"]),
        ("p.txt", "\ufeffabc\r\nd\r\n", ["abc", "d"]),
        ("p.txt", "one\x0ctwo\x85three\u2028\n", ["one\x0ctwo\x85three\u2028"]),
        ("p.jsonl", '\ufeff{"prompt": "a\u2028b\x85c"}\n\n{"prompt": ""}', ["a\u2028b\x85c", ""]),
        ("p.JSON", '{"prompt": "\\ud83d\\ude00", "id": 3}\n', ["😀"]),
    ],
)
def test_only_line_ends_divide_prompts_and_a_mark_is_none(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", r"p.txt: holds no prompt"),
        ("p.txt", b"\xef\xbb\xbf\n \n", r"p.txt: holds no prompt"),
        ("p.txt", b"abc\n\nd\xff\n", r"p.txt:3: byte 0xff is not UTF-8"),
        ("p.txt", "abc\n".encode("utf-16"), r"p.txt:1: looks like UTF-16"),
        ("p.jsonl", b'\n\n{"prompt": "a"}\n\n[]', r"p.jsonl:5: .*expected {\"prompt\": text}"),
        ("p.jsonl", b'{"prompt": 3}', r"p.jsonl:1: expected {\"prompt\": text}"),
        ("p.jsonl", b'{"prompt": "\\ud83d"}', r"p.jsonl:1: 'prompt' holds \\ud83d, half a surr"),
        ("p.jsonl", b"[" * 100_000, r"p.jsonl:1: nested too deeply"),
        ("p.jsonl", b'{"prompt": "a", "n": %s}' % (b"1" * 5000), r"p.jsonl:1: .*5,000 digits"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


PIECES = [b"a", b"\n", b"\r", b" ", b"\x0c", b"\0", b"\xff", b"\xef\xbb\xbf", "\u2028".encode()]
JSON_PIECES = [*PIECES, b'{"prompt": "', b'"}', b'"}\n{"prompt": "', rb"\ud800", rb"\u00e9", b"["]


@given(st.lists(st.sampled_from(PIECES)), st.lists(st.sampled_from(JSON_PIECES)))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_prompt_is_read_or_the_file_refused(tmp_path, text, json_text):
    for name, pieces in (("p.txt", text), ("p.jsonl", json_text)):
        data = b"".join(pieces)
        (tmp_path / name).write_bytes(data)
        try:
            read = read_prompts(tmp_path / name)
        except ValueError as error:
            message = str(error)
            named = re.search(rf"{name}:(\d+): ", message)
            is_placed = named is not None and 1 <= int(named[1]) <= data.count(b"\n") + 1
            if "\n" in message or not (is_placed or message.endswith("holds no prompt")):
                raise
        else:
            lines = data.decode().removeprefix("\ufeff").split("\n")
            assert len(read) == sum(bool(line.strip()) for line in lines)


def typed(monkeypatch, data: bytes) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    return list(typed_prompts())


def test_standard_input_is_read_like_a_file(monkeypatch):
    data = "\ufeffone\x0c\u2028two\r\n\n \nthree\\n".encode()
    assert typed(monkeypatch, data) == ["one\x0c\u2028two", "three\n"]
    with pytest.raises(ValueError, match=r"standard input:2: byte 0xff is not UTF-8"):
        typed(monkeypatch, b"one\ntwo\xff\n")


def test_a_closed_standard_input_has_no_prompts(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert list(typed_prompts()) == []


def test_a_prompt_of_the_command_line_is_text():
    assert given_prompt(r"a\nb") == "a\nb"
    with pytest.raises(ConfigError, match=r"--prompt 'a\\udcff': bytes that are not UTF-8"):
        given_prompt(b"a\xff".decode("utf-8", "surrogateescape"))
