"""The task over a user's own files, and the one clear line for each thing wrong with them."""

from __future__ import annotations

import pytest

import tasks
from tasks.base.task import Example


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.tsv").write_text("a b\tc d e\nx\ty\tshort\n")
    return tmp_path


def test_tsv_with_and_without_category(folder):
    task = tasks.create("file", train="my.tsv")
    assert task.split("train") == [
        Example(("a", "b"), ("c", "d", "e"), "", 3.0),
        Example(("x",), ("y",), "short", 1.0),
    ]
    assert task.kind == "sequence_to_sequence"


def test_json_lines_with_every_key(folder):
    (folder / "my.jsonl").write_text(
        '{"source": "a b", "target": "c", "category": "k", "difficulty": 2.5}\n'
        '{"target": "d", "source": "é"}'
    )
    assert tasks.create("file", train="my.jsonl").split("train") == [
        Example(("a", "b"), ("c",), "k", 2.5),
        Example(("é",), ("d",), "", 1.0),
    ]


def test_classification_keeps_labels_whole_and_characters_divide_the_source(folder):
    (folder / "labels.tsv").write_text("ab c\tvery good\n")
    task = tasks.create("file", train="labels.tsv", kind="classification", tokenize="characters")
    assert task.kind == "classification"
    assert task.split("train") == [Example(("a", "b", " ", "c"), ("very good",), "", 4.0)]
    assert task.classes() == ("very good",)


def test_splits_come_in_order_and_may_have_any_name(folder):
    task = tasks.create(
        "file", train="my.tsv", test="my.tsv", dev="my.tsv", other={"hard": "my.tsv"}
    )
    assert list(task.splits()) == ["train", "dev", "test", "hard"]
    assert task.selection_splits == ("dev",)
    assert tasks.create("file", train="my.tsv", test="my.tsv").selection_splits == ()
    assert task.in_distribution_split is None
    named = tasks.create("file", train="my.tsv", test="my.tsv", in_distribution="test")
    assert named.in_distribution_split == "test"


def test_windows_line_ends_and_byte_order_mark_are_no_tokens(folder):
    (folder / "win.tsv").write_bytes(b"\xef\xbb\xbfa\tb\r\nc\td\r\n")
    rows = tasks.create("file", train="win.tsv").split("train")
    assert rows == [Example(("a",), ("b",), "", 1.0), Example(("c",), ("d",), "", 1.0)]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("e.tsv", b"", ["task.train='e.tsv'", "empty file"]),
        ("e.tsv", b" \n\n", ["task.train='e.tsv'", "empty file"]),
        ("e.tsv", b"\xef\xbb\xbf\n", ["task.train='e.tsv'", "empty file"]),
        ("b.tsv", b"a\tb\nc\0\td\n", ["b.tsv:2", "binary"]),
        ("b.tsv", "a\tb\n".encode("utf-16"), ["b.tsv:1", "UTF-16", "expected UTF-8"]),
        ("u.tsv", b"a\tb\nc\t\xff\n", ["u.tsv:2", "0xff", "UTF-8"]),
        ("m.tsv", b"a\tb\nonly source\n", ["m.tsv:2", "'only source'", "1 column", "TAB"]),
        ("m.tsv", b"a\tb\n\nc\td\n", ["m.tsv:2", "1 column"]),
        ("m.tsv", b"a\tb\n\n\n \nc\td\n\n", ["m.tsv:2", "1 column"]),
        ("m.tsv", b"a\tb\n\x0c\n", ["m.tsv:2", "1 column"]),
        ("m.tsv", b"a\tb\tc\td\n", ["m.tsv:1", "4 columns"]),
        ("h.tsv", b"source\ttarget\na\tb\n", ["h.tsv:1", "a header", "remove the line, or move"]),
        ("h.tsv", b'\xef\xbb\xbf# Source\t"Target"\tCategory\n', ["h.tsv:1", "a header"]),
        ("h.tsv", b"text\tlabel\r\na\tb\r\n", ["h.tsv:1", "'text\\tlabel'", "a header"]),
        ("m.tsv", b"a\t\n", ["m.tsv:1", "target is empty"]),
        ("m.tsv", b" \tb\n", ["m.tsv:1", "source is empty"]),
        ("m.tsv", b"a <pad>\tb\n", ["m.tsv:1", "'<pad>'", "reserved"]),
        ("j.jsonl", b'{"source": "a"}\n', ["j.jsonl:1", "no 'target'"]),
        ("j.jsonl", b'{"source": "a", "targt": "b"}\n', ["'targt'", "did you mean 'target'?"]),
        ("j.jsonl", b'{"source": "a", "source": "b"}\n', ["'source'", "given twice"]),
        ("j.jsonl", b'{"source": "a", "target": 3}\n', ["target=3", "expected text"]),
        (
            "j.jsonl",
            b'{"source": "a", "target": "b", "difficulty": "x"}\n',
            ["difficulty='x'", "a number"],
        ),
        (
            "j.jsonl",
            b'{"source": "a", "target": "b", "difficulty": NaN}\n',
            ["difficulty=nan", "a number"],
        ),
        (
            "j.jsonl",
            b'{"source": "a", "target": "b", "difficulty": %s}\n' % (b"9" * 400),
            ["j.jsonl:1", "400 digits"],
        ),
        (
            "j.jsonl",
            b'{"source": "a", "target": "b", "difficulty": %s}\n' % (b"9" * 9000),
            ["j.jsonl:1", "9,000 digits"],
        ),
        ("j.jsonl", b'{"source": "a", "target": "b", "difficulty": 1e400}\n', ["difficulty=inf"]),
        ("j.jsonl", b"\n" + b"[" * 100_000 + b"\n", ["j.jsonl:1", "column 1", "JSON object"]),
        ("j.jsonl", b'{"source":' + b"[" * 100_000, ["j.jsonl:1", "nested too deeply"]),
        (
            "j.jsonl",
            b'{"source": %s, "target": "b"}' % (b"[" * 300 + b"]" * 300),
            ["j.jsonl:1", "source has [[["],
        ),
        ("m.tsv", b"a\tb\rc\td\r", ["m.tsv:1", "carriage return alone"]),
        ("j.jsonl", b'{"a":' * 100_000, ["j.jsonl:1", "nested too deeply"]),
        (
            "j.jsonl",
            b'{"source": "a", "target": "b"}\n{"source": "\\ud83d", "target": "b"}\n',
            ["j.jsonl:2", "'source' holds \\ud83d", "half a surrogate pair"],
        ),
        (
            "j.jsonl",
            b'{"source": "a", "target": "b", "page": [{"x": "\\udc00"}]}\n',
            ["j.jsonl:1", "'page' holds \\udc00"],
        ),
        (
            "j.jsonl",
            b'{"source": "a", "target": "b", "\\ud800": 1}\n',
            ["j.jsonl:1", "a key holds \\ud800"],
        ),
        ("j.jsonl", b'{"source": ["a", "b c"], "target": "b"}\n', ["j.jsonl:1", "has 'b c'"]),
        ("j.jsonl", b'{"source": ["a", ""], "target": "b"}\n', ["j.jsonl:1", "has ''"]),
        ("j.jsonl", b'{"source": ["a", 1], "target": "b"}\n', ["j.jsonl:1", "has 1"]),
        ("j.jsonl", b'{"source": [], "target": "b"}\n', ["j.jsonl:1", "source is empty"]),
        ("j.jsonl", b'{"source": ["<eos>"], "target": "b"}\n', ["j.jsonl:1", "reserved"]),
        ("j.jsonl", b'{"source": "a", "target": "b", "dificulty": 1}\n', ["mean 'difficulty'"]),
        ("j.jsonl", b'{"input": "a", "target": "b"}\n', ["no 'source'", "it has 'input'"]),
        ("j.jsonl", b'{"source": "a"\n', ["j.jsonl:1", "column", "JSON object"]),
        ("j.jsonl", b"[1]\n", ["j.jsonl:1", "JSON object"]),
    ],
)
def test_wrong_files_give_one_line_with_the_place(folder, name, content, parts):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.(tsv|jsonl)") as error:
        tasks.create("file", train=name).splits()
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_blank_lines_at_the_end_are_no_rows(folder):
    for end in (b"\n", b"\n\n", b"\n\r\n  \n\n", b""):
        (folder / "end.tsv").write_bytes(b"a\tb\nc\td" + end)
        assert len(tasks.create("file", train="end.tsv").split("train")) == 2
        (folder / "end.jsonl").write_bytes(b'{"source": "a", "target": "b"}' + end)
        assert len(tasks.create("file", train="end.jsonl").split("train")) == 1


def test_a_first_row_of_one_name_twice_and_a_later_header_are_rows(folder):
    (folder / "copy.tsv").write_text("source\tsource\nsource\ttarget\n")
    assert len(tasks.create("file", train="copy.tsv").split("train")) == 2


def test_only_line_feeds_end_a_row(folder):
    odd = "a\x0b\x0c\x1c\x85\u2028\u2029b\rc"
    (folder / "odd.tsv").write_bytes(f"{odd}\t{odd}\n{odd}\tb\n".encode())
    rows = tasks.create("file", train="odd.tsv", tokenize="characters").split("train")
    assert ["".join(row.source) for row in rows] == [odd, odd]


def test_further_keys_of_json_lines_are_kept_and_change_no_identity(folder):
    (folder / "plain.jsonl").write_text('{"source": "a", "target": "b"}\n')
    (folder / "more.jsonl").write_text(
        '{"id": 7, "source": "a", "meta": {"url": "x"}, "target": "b"}\n'
    )
    plain, more = (tasks.create("file", train=f"{name}.jsonl") for name in ("plain", "more"))
    assert more.split("train")[0].metadata == {"id": 7, "meta": {"url": "x"}}
    assert plain.data_hash() == more.data_hash()


def test_a_list_of_tokens_is_not_divided(folder):
    (folder / "l.jsonl").write_text('{"source": ["a", " ", "bc"], "target": "d e"}\n')
    for tokenize, target in (("whitespace", ("d", "e")), ("characters", ("d", " ", "e"))):
        row = tasks.create("file", train="l.jsonl", tokenize=tokenize).split("train")[0]
        assert (row.source, row.target) == (("a", " ", "bc"), target)
    (folder / "l.jsonl").write_text('{"source": "a", "target": ["d"]}\n')
    with pytest.raises(ValueError, match=r"l.jsonl:1: target is a list, expected a class label"):
        tasks.create("file", train="l.jsonl", kind="classification").splits()


def test_missing_file_and_folder(folder):
    with pytest.raises(ValueError, match=r"task.train='mi.tsv': no such.*mean 'my.tsv'"):
        tasks.create("file", train="mi.tsv").splits()
    with pytest.raises(ValueError, match=r"task.other.hard='\.': is a folder"):
        tasks.create("file", train="my.tsv", other={"hard": "."}).splits()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"task.train: task 'file' needs it"),
        ({"train": "my.tsv", "kind": "classify"}, "did you mean 'classification'"),
        ({"train": "my.tsv", "other": {"test": "my.tsv"}}, "task.other.test"),
        ({"train": "my.tsv", "in_distribution": "dev"}, "task.in_distribution='dev'.*train"),
        ({"train": "my.tsv", "other": ["a"]}, "task.other=.*a mapping"),
    ],
)
def test_wrong_options_are_refused(folder, given, message):
    with pytest.raises(ValueError, match=message):
        tasks.create("file", **given)
