"""The standard library as a corpus: which files, in which order, and what its fingerprint sees."""

from __future__ import annotations

import pickle
import platform

import pytest

from tasks.language.stdlib import StandardLibrary


@pytest.fixture
def library(tmp_path):
    files = {
        "zipfile.py": "z = 1\n",
        "abc.py": "a = 1\n",
        "json/decoder.py": "# décodeur\n",
        "latin.py": "# -*- coding: latin-1 -*-\n# \xe9\n".encode("latin-1"),
        "empty.py": "",
        "notes.txt": "not source",
        "_sysconfigdata_linux.py": "x = '/home'\n",
        "site-packages/pip.py": "p = 1\n",
        "test/test_abc.py": "t = 1\n",
        "unittest/test/test_case.py": "t = 2\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return StandardLibrary(tmp_path)


def test_only_the_library_itself_sorted_by_path(library):
    assert library.files() == ["abc.py", "empty.py", "json/decoder.py", "latin.py", "zipfile.py"]


def test_every_file_is_a_document_decoded_as_it_declares(library):
    documents = list(library.documents())
    assert [document.name for document in documents] == [
        "abc.py", "json/decoder.py", "latin.py", "zipfile.py",
    ]  # fmt: skip
    assert documents[1].text == "# décodeur\n"
    assert documents[2].text.endswith("# é\n")


def test_text_that_no_file_can_hold_becomes_the_replacement_character(library):
    (library.folder / "half.py").write_bytes(rb"# -*- coding: unicode_escape -*- \ud800")
    assert [d.text[-1] for d in library.documents() if d.name == "half.py"] == ["\ufffd"]
    (library.folder / "half.py").write_bytes(b"# -*- coding: rot13 -*-")
    with pytest.raises(ValueError, match=r"half.py: not Python source: 'rot13' is not a text enc"):
        list(library.documents())


def test_fingerprint_changes_with_content_and_with_names(library):
    first = library.fingerprint()
    assert first["python"] == platform.python_version()
    assert (first["files"], first["bytes"]) == (5, 6 + 6 + 12 + 30)
    (library.folder / "abc.py").write_text("a = 2\n")
    changed = library.fingerprint()
    assert {key for key in first if first[key] != changed[key]} == {"sha256"}
    (library.folder / "abc.py").rename(library.folder / "abd.py")
    assert library.fingerprint()["sha256"] != changed["sha256"]


def test_source_that_cannot_be_decoded_is_named(library):
    (library.folder / "abc.py").write_bytes(b"a = '\xff'\n")
    with pytest.raises(ValueError, match=r"abc\.py: not Python source: invalid or missing"):
        list(library.documents())


def test_no_library_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no source files of the standard library"):
        StandardLibrary(tmp_path).parts()


def test_the_running_library_is_a_real_corpus_of_code():
    corpus = StandardLibrary()
    parts = corpus.parts()
    assert len(parts) > 4
    assert len({part.name for part in parts}) == len(parts)
    assert [part.files for part in parts] == [part.files for part in corpus.parts()]
    assert pickle.loads(pickle.dumps(parts)) == parts
    documents = list(corpus.documents())
    assert len(documents) > 500
    assert 10e6 < sum(len(document.text) for document in documents) < 20e6
    assert not any("/test/" in f"/{document.name}" for document in documents)
