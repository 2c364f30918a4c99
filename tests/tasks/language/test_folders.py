"""Walks over folders: links are followed once, circles end, what is passed over is counted."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from tasks.language.corpus_files import Files
from tasks.language.folders import BROKEN, HIDDEN, TWICE, Walk


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus with a linked folder, a circle, linked files and hidden ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("real/b.txt", "real/deep/c.txt", "corpus/a.txt", "corpus/x/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    folder = tmp_path / "corpus"
    (folder / "books").symlink_to("../real")
    (folder / "again").symlink_to("../real")
    (tmp_path / "real" / "back").symlink_to("../corpus")
    (folder / "x" / "up").symlink_to("..")
    (folder / "link.txt").symlink_to("a.txt")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / ".git").mkdir()
    (folder / ".git" / "e.txt").write_text("hidden")
    (folder / "table.csv").write_text("a,b")
    return folder


def names(paths):
    return [path.as_posix() for path in paths]


def test_linked_folders_are_followed_and_each_real_folder_is_read_once(corpus):
    walk = Walk()
    assert names(walk.files(Path("corpus"))) == [
        "corpus/a.txt",
        "corpus/again/b.txt",
        "corpus/again/deep/c.txt",
        "corpus/link.txt",
        "corpus/table.csv",
        "corpus/x/d.txt",
    ]
    # books; the circles back, in real and in x
    assert walk.passed_over == {HIDDEN: 1, BROKEN: 1, TWICE: 3}


def test_a_folder_and_a_pattern_see_the_same_files_each_once(corpus, caplog):
    texts = ["corpus/a.txt\n", "real/b.txt\n", "real/deep/c.txt\n", "corpus/x/d.txt\n"]
    for entries in (
        ["corpus"],
        ["corpus/**/*.txt"],
        ["./corpus", "corpus/**", "real", "corpus/a.txt"],
    ):
        caplog.clear()
        read = Files(entries)
        assert sorted(document.text for document in read.documents()) == sorted(texts)
        assert "linked to what was read already" in caplog.text
    folder = Files(["corpus"])
    caplog.clear()
    folder.parts()
    passed = (
        "passed over: 1 broken links, 1 hidden, 4 linked to what was read already, "
        "1 of another format (.csv)"
    )
    assert caplog.messages == [f"task.files: {passed}"]
    assert folder.facts() == {"files": f"4; {passed}"}


def test_a_fingerprint_enters_links_and_does_not_see_where_files_lie(corpus, tmp_path):
    before = Files(["corpus"]).fingerprint()
    assert before["files"] == 4
    (tmp_path / "real" / "deep" / "c.txt").write_text("changed\n")
    changed = Files(["corpus"]).fingerprint()
    assert changed["sha256"] != before["sha256"]
    (tmp_path / "real").rename(tmp_path / "moved")
    for link in ("books", "again"):
        (corpus / link).unlink()
    (corpus / "again").symlink_to(tmp_path / "moved")
    assert Files(["corpus"]).fingerprint() == changed
    assert Files([str(corpus)]).fingerprint() == changed
    plain = tmp_path / "other"
    plain.mkdir()
    for name, path in (("1", "a.txt"), ("2", "again/b.txt"), ("3", "again/deep/c.txt")):
        (plain / f"{name}.txt").write_bytes((corpus / path).read_bytes())
    (plain / "4.txt").write_bytes((corpus / "x/d.txt").read_bytes())
    assert Files(["other"]).fingerprint() == changed


@pytest.mark.parametrize(
    "pattern",
    [
        "*/*.txt",
        "*.txt",
        "corpus/*",
        "**/d.txt",
        "corp*/?/*",
        "corpus/**/[a-d].txt",
        "./corpus/x/*",
    ],
)
def test_patterns_match_as_those_of_the_library(corpus, pattern):
    for link in ("books", "again", "x/up", "../real/back"):  # it reads what is linked over and over
        (corpus / link).unlink()
    expected = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    assert Walk().matching(pattern) == [path for path in expected if path.is_file()]


def test_names_that_are_no_text_and_folders_that_cannot_be_read(corpus, monkeypatch):
    odd = b"corpus/\xff\xfe.txt"
    with open(odd, "wb") as file:
        file.write(b"odd")
    assert Files(["corpus"]).fingerprint()["files"] == 5

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ValueError, match=r"task.files='corpus': cannot be read: Permission denied"):
        Files(["corpus"]).files()
