"""Data files: where they are looked for, and that a wrong byte is refused."""

from __future__ import annotations

import gzip

import pytest

from tasks.base.data_files import (
    DataDamaged,
    DataFile,
    DataMissing,
    cache_folder,
    checked_path,
    locate,
    read_bytes,
    read_lines,
)
from tasks.base.storage import sha256_of

CONTENT = b"one\ntwo\n"
FILE = DataFile(path="toy/rows.txt", url="http://localhost/", sha256=sha256_of(CONTENT), rows=2)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    for name in ("data", "cache"):
        (tmp_path / name / "toy").mkdir(parents=True)
    return tmp_path


def test_data_folder_comes_before_the_cache(folders):
    (folders / "cache" / FILE.path).write_bytes(CONTENT)
    assert locate(FILE) == folders / "cache" / FILE.path
    (folders / "data" / FILE.path).write_bytes(CONTENT)
    assert locate(FILE) == folders / "data" / FILE.path
    assert read_lines(FILE) == ["one", "two"]


def test_cache_is_in_the_home_folder_unless_named(monkeypatch):
    monkeypatch.delenv("MOEUT_CACHE", raising=False)
    assert cache_folder().parts[-2:] == (".cache", "moeut")


def test_missing_file_says_where_and_how_to_fetch_it(folders):
    with pytest.raises(DataMissing) as error:
        locate(FILE)
    message = str(error.value)
    assert "toy/rows.txt: not found in" in message
    assert str(folders / "data") in message
    assert message.endswith("fetch it with: python -m tasks.fetch toy")


def test_file_outside_the_default_set_is_fetched_by_its_path():
    file = DataFile(path="toy/rare.txt", url="", sha256="", by_default=False)
    assert file.fetch_command == "python -m tasks.fetch toy/rare.txt"


def test_a_path_is_given_after_its_bytes_were_compared(folders):
    path = folders / "data" / FILE.path
    path.write_bytes(CONTENT)
    assert checked_path(FILE) == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataDamaged, match=r"damaged: SHA-256"):
        checked_path(FILE)
    path.unlink()
    packed = path.with_name("rows.txt.gz")
    packed.write_bytes(gzip.compress(CONTENT))
    assert checked_path(FILE) == packed
    packed.write_bytes(gzip.compress(CONTENT[:-1]))
    with pytest.raises(DataDamaged, match=r"damaged: SHA-256"):
        checked_path(FILE)


@pytest.mark.parametrize("read", [read_bytes, checked_path])
def test_what_nobody_published_is_noted_with_a_line_and_stays_the_same(folders, capsys, read):
    member = DataFile("toy/rows.txt", FILE.url, None, archive=FILE, member="rows.txt")
    path = folders / "data" / member.path
    path.write_bytes(b"by hand")
    read(member)
    line = capsys.readouterr().err
    assert line.startswith(f"{path}: not fetched by tasks.fetch")
    assert line.endswith(f"noted: {sha256_of(b'by hand')}\n")
    read(member)
    assert capsys.readouterr().err == ""
    path.write_bytes(b"by hand, changed")
    with pytest.raises(DataDamaged, match=r"damaged: SHA-256 .* fetch it again"):
        read(member)


@pytest.mark.parametrize("content", [b"one\ntwp\n", b"one\n", b"", CONTENT + b"\n"])
def test_any_other_byte_is_refused(folders, content):
    path = folders / "data" / FILE.path
    path.write_bytes(content)
    with pytest.raises(DataDamaged, match=r"damaged: SHA-256 .* expected .*tasks\.fetch toy"):
        read_bytes(FILE)


def test_another_number_of_rows_is_refused(folders):
    (folders / "data" / FILE.path).write_bytes(CONTENT)
    wrong = DataFile(path=FILE.path, url="", sha256=FILE.sha256, rows=3)
    with pytest.raises(DataDamaged, match="2 lines, expected 3"):
        read_lines(wrong)
