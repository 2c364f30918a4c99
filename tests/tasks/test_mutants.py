"""Byte-level mutants of users' files: each is read whole, or refused by one line with the place.

No mutant may end in another exception than ValueError, and none may lose a row in silence: the rows
read and the rows refused are the rows there, which are counted here from the bytes. ``nox -s
mutants`` tries thousands; a mutant that fails is named by its kind and number, from which it can be
made again.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

import tasks
from tasks.export import sides_as_lists, to_json_line
from tasks.language.corpus_files import Files
from tasks.language.tokenizers import load_tokenizer
from tasks.show import show

COUNT = int(os.environ.get("MOEUT_MUTANTS", "150"))
"""Mutants of each kind of file."""

PIECES = [
    b"\0", b"\n", b"\n\n", b"\r", b"\r\n", b"\t", b" ", b"\x0b", b"\x0c", b"\x1c", b"\x1f", b"\x7f",
    b"\x80", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b"\xfe\xff", b"\xff",
    "\x85".encode(), "\u2028".encode(), "\u2029".encode(), "\u2585".encode(), "🙂".encode(),
    rb"\ud800", rb"\udc00", rb"\u0000", b"\\", b'"', b"'", b",", b":", b"{", b"}", b"[", b"]",
    b"<pad>", b"<eos>", b"null", b"NaN", b"-Infinity", b"true", b"1e999", b"-1", b"9" * 400,
    b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"source\ttarget\n", b'{"source": "a"}\n', b"{}\n",
    b"[" * 600 + b"]" * 600, b'"text": "x", ', b'"source": "x", ',
]  # fmt: skip
"""What is put into a file, beside what is taken from it."""


def mutant(data: bytes, draw: random.Random) -> bytes:
    """Return a file with one to four changes at random places."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((0, 1, 1, 2, 5, 20)))
        piece = data[start:end]
        other = draw.randrange(len(data) + 1)
        change = draw.randrange(7)
        if change == 0:
            data = data[:start] + draw.choice(PIECES) + data[start:]
        elif change == 1:
            data = data[:start] + draw.choice(PIECES) + data[end:]
        elif change == 2:
            data = data[:start] + data[end:]
        elif change == 3:
            data = data[:other] + piece + data[other:]
        elif change == 4:
            data = data[:start] + draw.randbytes(len(piece)) + data[end:]
        elif change == 5 and piece:
            data = data[:start] + bytes([piece[0] ^ (1 << draw.randrange(8))]) + data[start + 1 :]
        elif change == 6 and draw.random() < 0.2:
            data = data[:start]
    return data


@contextlib.contextmanager
def one_line(place: str) -> Iterator[list[str]]:
    """Give a list that gets the message of a refusal, which must be one line that has a place."""
    refused: list[str] = []
    try:
        yield refused
    except ValueError as error:
        refused.append(str(error))
        is_plain = "\n" not in refused[0] and len(refused[0]) < 700
        if isinstance(error, UnicodeError) or not is_plain or not re.search(place, refused[0]):
            raise


def text_rows(data: bytes) -> list[bytes]:
    """Return the rows of a file: its lines, without blank ones at the end."""
    rows = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while rows and not rows[-1].strip(b" \r"):
        rows.pop()
    return rows


def check_rows(path: Path) -> None:
    """Check a TSV or a JSON lines file as the task ``file`` reads it."""
    rows = text_rows(path.read_bytes())
    with one_line(rf"^(task\.train='{path.name}': empty|{path.name}:\d+: )") as refused:
        task = tasks.create("file", train=path.name, tokenize="characters")
        read = task.split("train")
        assert len(read) == len(rows)
        for row, line in zip(read, rows, strict=True):
            given = line.removesuffix(b"\r").decode()
            expected = json.loads(given) if path.suffix == ".jsonl" else given.split("\t")
            source = expected[0] if isinstance(expected, list) else expected["source"]
            assert "".join(row.source) == "".join(source)
        task.vocabularies()
        task.data_hash()
        lists = sides_as_lists(read, task.kind)
        written = "".join(to_json_line(row, lists) + "\n" for row in read)
        Path("back.jsonl").write_bytes(written.encode())
        assert tasks.create("file", train="back.jsonl").split("train") == [
            type(row)(row.source, row.target, row.category, row.difficulty) for row in read
        ]
    for message in refused:
        if not message.startswith("task."):
            assert 1 <= int(message.split(":")[1]) <= len(rows)


def check_shown(path: Path) -> None:
    """Check that a task whose rows can be read can be printed on a terminal of UTF-8."""
    with one_line(rf"^(task\.train=|{path.name}:\d+: )"):
        print_task(tasks.create("file", train=path.name, test=path.name))


def print_task(task: tasks.Task) -> None:
    show(task, Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))


def check_text(path: Path) -> None:
    """Check a text file as a corpus, in each of the three ways to divide it."""
    data = path.read_bytes()
    for documents in ("files", "paragraphs", 16):
        with one_line(rf"^(task\.files=|\S*{path.name}: not UTF-8: byte 0x.. at offset \d+$)"):
            texts = [
                document.text for document in Files([path.name], "text", documents).documents()
            ]
            read, there = "".join(texts), data.decode().removeprefix("\ufeff")
            if documents == "paragraphs":  # blank lines are left out, and nothing else
                read, there = (re.sub(r"[ \t\r\f\v\n]", "", text) for text in (read, there))
            assert read == there


def check_documents(path: Path) -> None:
    """Check JSON lines as a corpus: each line is a document, unless it holds none or is blank."""
    data = path.read_bytes()
    field = rf"task\.text_field=.*{path.name}:\d+"
    with one_line(rf"^(task\.files=|{field}|\S*{path.name}:( not UTF-8|\d+: ))"):
        read = [document.text for document in Files([path.name]).documents()]
        lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        pairs = [pair for line in lines for pair in json.loads(line, object_pairs_hook=list)]
        assert len(read) == sum(key == "text" and text != "" for key, text in pairs)


def check_compressed(path: Path) -> None:
    """Check a compressed corpus: it is whole, or refused."""
    with one_line(rf"^(task\.|\S*{path.name}:)"):
        read = [document.text for document in Files([path.name]).documents()]
        lines = gzip.decompress(path.read_bytes()).split(b"\n")
        assert len(read) == sum(bool(line.strip()) for line in lines)


def check_parquet(path: Path) -> None:
    """Check a Parquet file, whose list of row groups no checksum protects."""
    with one_line(rf"^(task\.|\S*{path.name}:)"):
        assert len(list(Files([path.name]).documents())) == 12


def check_packed(path: Path) -> None:
    """Check that packing has every document, in a split or among the duplicates counted."""
    with one_line(r"^(task\.|\S*documents\.jsonl:|the corpus is empty)"):
        task = tasks.create(
            "language", corpus="files", files=path.name, tokenizer="bytes", context_length=8,
            validation_fraction=0.3, test_fraction=0.3,
        )  # fmt: skip
        splits = task.splits().values()
        documents = list(Files([path.name]).documents())
        packed = sum(split.num_documents + split.num_duplicates for split in splits)
        assert packed == len(documents)
        print_task(task)


def check_tokenizer(path: Path) -> None:
    """Check a ``tokenizer.json``: it is refused, or encodes and decodes within its vocabulary."""
    with one_line(r"tokenizer\.json"):
        tokenizer = load_tokenizer(path)
        for text in ("the cat", "é🙂\n", ""):
            ids = tokenizer.encode(text)
            assert all(0 <= number < tokenizer.vocabulary_size for number in ids)
            assert isinstance(tokenizer.decode(ids), str)


def parquet() -> bytes:
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.table({"text": [f"document {number} é" for number in range(12)]})
    pyarrow.parquet.write_table(table, buffer, row_group_size=4)
    return buffer.getvalue()


def tokenizer_json() -> bytes:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = ["t", "h", "e", "c", "a", "Ġ", "th", "the", "Ġc"]
    words = {word: number for number, word in enumerate(letters)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "c")]
    model = Tokenizer(models.BPE(words, merges))
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.post_processor = processors.ByteLevel()
    model.add_special_tokens(["<|endoftext|>"])
    return model.to_str(pretty=True).encode()


@dataclass(frozen=True)
class Kind:
    name: str
    """Of the file."""
    data: Callable[[], bytes]
    """What mutants are made of."""
    check: Callable[[Path], None]
    share: float = 1.0
    """Of ``COUNT``, for a check that takes long."""


TSV = "a b\tb a\nc d e\te d c\tlong\n é🙂 \tx\n\"q\"\t'q'\r\nlast\tone\n".encode()
JSON_ROWS = (
    '{"source": "a b", "target": "b a"}\n'
    '{"source": "c\\u00e9 \\ud83d\\ude42", "target": "d", "category": "k", "difficulty": 2.5}\n'
    '{"source": ["x", " "], "target": ["y"], "id": 7, "meta": {"url": [1, null]}}\n'
    '{"target": "é🙂", "source": "\\"q\\"", "difficulty": 3}\n'
).encode()
TEXT = "\ufeffFirst line\r\n\n \nSecond paragraph é🙂\nof two lines\n\n\nthe end".encode()
DOCUMENTS = b"".join(
    b'{"id": %d, "text": "%s \\u00e9 document %d"}\n' % (number, b"long " * (number % 7), number)
    for number in range(12)
)
KINDS = {
    "tsv": Kind("rows.tsv", lambda: TSV, check_rows),
    "jsonl": Kind("rows.jsonl", lambda: JSON_ROWS, check_rows),
    "shown": Kind("rows.jsonl", lambda: JSON_ROWS, check_shown, share=0.1),
    "text": Kind("text.txt", lambda: TEXT, check_text),
    "documents": Kind("documents.jsonl", lambda: DOCUMENTS, check_documents),
    "compressed": Kind("d.jsonl.gz", lambda: gzip.compress(DOCUMENTS, mtime=0), check_compressed),
    "parquet": Kind("d.parquet", parquet, check_parquet),
    "packed": Kind("documents.jsonl", lambda: DOCUMENTS, check_packed, share=0.1),
    "tokenizer": Kind("tokenizer.json", tokenizer_json, check_tokenizer),
}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", KINDS)
def test_mutants_are_read_whole_or_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    kind = KINDS[name]
    data, path = kind.data(), Path(kind.name)
    for number in range(int(kind.share * COUNT)):
        content = data if number == 0 else mutant(data, random.Random(f"{name} {number}"))
        path.write_bytes(content)
        try:
            kind.check(path)
        except BaseException as error:
            error.add_note(f"mutant {number} of {name}: {content[:2000]!r}")
            raise
