"""Files as a corpus: every format read to the same documents, cut into parts, refused when bad."""

from __future__ import annotations

import gzip
import json
import pickle
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.language import corpus_files as files_module
from tasks.language.corpora import open_corpus
from tasks.language.corpus_files import Files

zstandard = pytest.importorskip("zstandard")
pyarrow = pytest.importorskip("pyarrow")

TEXTS = ["first", "zweiter\n\n  Text", "日本語 🙂", "  spaces  \t", "last\r\n"]


def json_lines(texts, field="text"):
    return "".join(json.dumps({"id": n, field: text}) + "\n" for n, text in enumerate(texts))


def write(path, texts, field="text"):
    """Write texts in the format that the name says."""
    name = path.name
    if name.endswith(".parquet"):
        import pyarrow.parquet

        table = pyarrow.table({"id": list(range(len(texts))), field: texts})
        pyarrow.parquet.write_table(table, path, row_group_size=2)
        return path
    data = json_lines(texts, field).encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        # Two frames, as a file has that was made by appending.
        half = data.index(b"\n", len(data) // 2) + 1
        compress = zstandard.ZstdCompressor().compress
        data = compress(data[:half]) + compress(data[half:])
    path.write_bytes(data)
    return path


def texts_of(corpus):
    return [document.text for document in corpus.documents()]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.ndjson", "a.parquet"]
)
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = write(tmp_path / name, [*TEXTS, ""], field="content")
    corpus = open_corpus("files", files=[str(path)], text_field="content")
    documents = list(corpus.documents())
    assert [document.text for document in documents] == TEXTS
    assert all(document.name.startswith(f"{path}:") for document in documents)
    assert pickle.loads(pickle.dumps(corpus.parts())) == corpus.parts()


def test_a_text_file_is_a_document_as_it_stands(tmp_path):
    (tmp_path / "b.md").write_bytes(b"# title\r\n\tbody \xc3\xa9")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfmarked\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "skipped.py").write_bytes(b"code")
    (tmp_path / ".hidden.txt").write_bytes(b"hidden")
    corpus = Files([str(tmp_path)])
    assert texts_of(corpus) == ["marked\n", "# title\r\n\tbody é", "packed"]


def test_folders_globs_and_files_come_in_the_order_given_and_once(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("z.txt", "deep/y.txt", "deep/er/x.txt", "deep/code.py"):
        (tmp_path / name).write_text(name)
    assert texts_of(Files([str(tmp_path)])) == ["deep/er/x.txt", "deep/y.txt", "z.txt"]
    corpus = Files([str(tmp_path / "z.txt"), str(tmp_path / "**" / "*.txt")])
    assert texts_of(corpus) == ["z.txt", "deep/er/x.txt", "deep/y.txt"]
    assert texts_of(Files([str(tmp_path / "**" / "*.py")])) == ["deep/code.py"]


@pytest.mark.parametrize("part_bytes", [7, 50, 64, 600])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt"])
def test_large_files_are_cut_into_parts_that_lose_nothing(tmp_path, monkeypatch, name, part_bytes):
    texts = [f"line {n} " + "é" * (n % 9) for n in range(60)]
    path = tmp_path / name
    if name.endswith(".txt"):
        path.write_text("\n".join(texts), encoding="utf-8")
    else:
        write(path, texts)
    whole = Files([str(path)], documents=100)
    expected = texts_of(whole)
    monkeypatch.setattr(files_module, "PART_BYTES", part_bytes)
    corpus = Files([str(path)], documents=100)
    parts = corpus.parts()
    assert len({part.name for part in parts}) == len(parts) > 1
    assert parts == corpus.parts()
    if name.endswith(".txt"):
        assert "".join(texts_of(corpus)) == "\n".join(texts) == "".join(expected)
        assert all(len(text.encode()) <= 100 for text in texts_of(corpus))
    else:
        assert texts_of(corpus) == texts == expected


@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40)),
    part_bytes=st.integers(1, 90),
    document_bytes=st.integers(8, 60),
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_text_in_pieces_is_the_text(tmp_path, monkeypatch, lines, part_bytes, document_bytes):
    path = tmp_path / "a.txt"
    text = "\n".join(lines)
    path.write_bytes(b"x" + text.encode())
    monkeypatch.setattr(files_module, "PART_BYTES", part_bytes)
    documents = texts_of(Files([str(path)], documents=document_bytes))
    assert "".join(documents) == "x" + text
    assert all(len(document.encode()) <= document_bytes for document in documents)


def test_a_text_of_the_largest_size_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("12\n45\n789")
    assert len(texts_of(Files([str(tmp_path)], documents=9))) == 1
    assert texts_of(Files([str(tmp_path)], documents=8)) == ["12\n45\n", "789"]


def test_paragraphs_are_what_lies_between_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n \nfirst\n  line\r\n\r\n\nsecond\n\t\n\n  third")
    documents = list(Files([str(path)], documents="paragraphs").documents())
    assert [document.text for document in documents] == [
        "first\n  line\r\n", "second\n", "  third",
    ]  # fmt: skip
    data = path.read_bytes()
    assert [document.name for document in documents] == [
        f"{path}@{data.index(word)}" for word in (b"first", b"second", b"  third")
    ]
    path.with_name("b.txt").write_text("\n\n  \n")
    assert texts_of(Files([str(path.with_name("b.txt"))], documents="paragraphs")) == []


@given(
    paragraphs=st.lists(st.lists(st.sampled_from(["a", "bé", " c"]), min_size=1, max_size=4)),
    blanks=st.lists(st.sampled_from(["", " ", "\n\t"]), min_size=40, max_size=40),
    longest=st.integers(32, 80),
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_paragraphs_do_not_depend_on_how_much_is_read_at_once(
    tmp_path, monkeypatch, paragraphs, blanks, longest
):
    texts = ["".join(f"{line}\n" for line in lines) for lines in paragraphs]
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{t}{blank}\n" for t, blank in zip(texts, blanks, strict=False)))
    monkeypatch.setattr(files_module, "DOCUMENT_BYTES", longest)
    if texts:
        assert texts_of(Files([str(path)], documents="paragraphs")) == texts[:40]


def test_a_long_paragraph_is_cut_at_line_ends(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("1234567\n123\n12345678901\n\nend")
    monkeypatch.setattr(files_module, "DOCUMENT_BYTES", 10)
    corpus = Files([str(tmp_path)], documents="paragraphs")
    assert texts_of(corpus) == ["1234567\n", "123\n", "1234567890", "1\n", "end"]


def test_small_files_share_a_part(tmp_path, monkeypatch):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 10)
    assert len(Files([str(tmp_path)]).parts()) == 1
    monkeypatch.setattr(files_module, "PART_BYTES", 25)
    assert len(Files([str(tmp_path)]).parts()) == 4


def test_the_fingerprint_is_of_content_not_of_the_machine(tmp_path):
    prints = []
    for place in ("here", "there"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "a.txt").write_text("one")
        (tmp_path / place / "sub" / "b.txt").write_text("two")
        prints.append(Files([str(tmp_path / place)]).fingerprint())
    assert prints[0] == prints[1]
    assert prints[0]["files"] == 2
    (tmp_path / "there" / "a.txt").write_text("eno")
    changed = Files([str(tmp_path / "there")]).fingerprint()
    assert {key for key in changed if changed[key] != prints[0][key]} == {"sha256"}


def test_the_hash_of_a_large_file_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files_module, "REMEMBERED_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_text("large")
    first = files_module.remembered_sha256(path)
    (kept,) = (tmp_path / "cache" / "sha256").iterdir()
    assert kept.read_text() == first
    kept.write_text("remembered")
    assert files_module.remembered_sha256(path) == "remembered"
    path.write_text("larger")
    assert files_module.remembered_sha256(path) not in (first, "remembered")


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert texts_of(Files([str(tmp_path)])) == ["a\ufffd b", "😀"]


def refused(tmp_path, match, *entries, **options):
    with pytest.raises(ValueError, match=match) as error:
        list(Files([str(tmp_path / entry) for entry in entries], **options).documents())
    assert "\n" not in str(error.value)


def test_missing_files_are_named_with_the_nearest(tmp_path):
    (tmp_path / "corpus.txt").write_text("x")
    refused(tmp_path, r"no such file or folder; did you mean 'corpus\.txt'\?", "corpvs.txt")
    refused(tmp_path, r"no folder '.*nowhere'", "nowhere/corpus.txt")
    refused(tmp_path, "matches no file to read", "*.jsonl")


def test_pieces_have_room_for_a_character(tmp_path):
    (tmp_path / "corpus.txt").write_text("x")
    for number in (0, 7, 1 << 21):
        message = rf"task\.documents={number}: must be files, .* from 8 to"
        refused(tmp_path, message, "corpus.txt", documents=number)


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs at least one file or folder"):
        open_corpus("files")
    refused(tmp_path, "no file to read there; expected .txt, .md", "")
    (tmp_path / "empty.txt").touch()
    refused(tmp_path, "the corpus is empty: no bytes", "")


@pytest.mark.parametrize("name", ["table.csv", "archive.tar.gz", "data.parquet.gz", "none"])
def test_unknown_formats_are_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    refused(tmp_path, "unknown format; expected .txt, .md, .jsonl", name)


@pytest.mark.parametrize("part_bytes", [1 << 20, 16])
def test_bytes_that_are_not_utf8_are_named_by_file_and_offset(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(files_module, "PART_BYTES", part_bytes)
    (tmp_path / "a.txt").write_bytes(b"0123456789\n" * 3 + b"bad \xff!")
    refused(tmp_path, r"a\.txt: not UTF-8: byte 0xff at offset 37$", "a.txt")
    lines = json_lines(["fine"] * 3).encode()
    (tmp_path / "b.jsonl").write_bytes(lines + b'{"text": "\xe9"}\n')
    refused(tmp_path, rf"b\.jsonl: not UTF-8: byte 0xe9 at offset {len(lines) + 10}$", "b.jsonl")


def test_parquet_that_is_not_utf8_is_refused(tmp_path):
    import pyarrow.parquet

    column = pyarrow.array([b"fine", b"\xff\xfe"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    refused(tmp_path, r"a\.parquet: not UTF-8: row group 0", "a.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.parquet"])
def test_a_missing_field_is_named_with_those_there_are(tmp_path, name):
    write(tmp_path / name, TEXTS, field="content")
    refused(
        tmp_path,
        rf"task\.text_field='contents': no such .* in .*{name}.*; it has id, content; did you",
        name,
        text_field="contents",
    )
    refused(tmp_path, "'id' holds .*, expected text", name, text_field="id")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"text": "a"', "a.jsonl:2: not a JSON object on one line"),
        ('{"text": "a", "id": 1, "text": "b"}', "a.jsonl:2: field 'text' is given twice"),
        ("[" * 100_000, "a.jsonl:2: not a JSON object on one line .nested too deeply"),
        ('{"id": %s, "text": "a"}' % ("9" * 5000), r"a.jsonl:2: .*a number of 5,000 digits"),
        ('["a"]', "a.jsonl:2: expected a JSON object on each line, found a list"),
        ('{"text": null}', "a.jsonl:2: field 'text' holds null, expected text"),
        ('{"text": true}', "a.jsonl:2: field 'text' holds true or false, expected text"),
    ],
)
def test_bad_lines_are_named_by_number(tmp_path, line, match):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    refused(tmp_path, match, "a.jsonl")


def test_the_name_of_the_field_inside_of_text_or_deeper_is_no_second_one(tmp_path):
    line = {"text": 'says "text"', "more": {"text": "not this", "x": ["text", '"text"']}}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    assert texts_of(Files([str(tmp_path / "a.jsonl")])) == ['says "text"']


def test_null_in_parquet_is_named_by_row(tmp_path):
    write(tmp_path / "a.parquet", ["a", "b", "c", None])
    refused(tmp_path, r"a\.parquet:1:1: column 'text' holds null", "a.parquet")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "cut in the second half", "changed", "other"])
def test_damaged_compression_is_refused(tmp_path, name, damage):
    path = write(tmp_path / name, [str(number) * 50 for number in range(400)])
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:20]
    elif damage == "cut in the second half":
        data = data[:-3]
    elif damage == "changed":
        data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
    else:
        data = bytearray(b"plain text, not compressed at all")
    path.write_bytes(bytes(data))
    refused(tmp_path, f"{name}: (damaged|.*not)", name)


@pytest.mark.parametrize("kept", [10, 0.5, -1])
def test_damaged_parquet_is_refused(tmp_path, kept):
    path = write(tmp_path / "a.parquet", TEXTS)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refused(tmp_path, "damaged, or not a Parquet file", "a.parquet")


@pytest.mark.parametrize(
    ("module", "name"), [("zstandard", "a.jsonl.zst"), ("pyarrow", "a.parquet")]
)
def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, module, name):
    write(tmp_path / name, TEXTS)
    monkeypatch.setitem(sys.modules, module, None)
    refused(tmp_path, rf"needs '{module}': pip install 'moeut-suite\[lm\]'", name)
