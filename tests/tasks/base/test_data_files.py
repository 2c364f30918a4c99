"""Data files: where they are looked for, and that a wrong byte is refused."""

from __future__ import annotations

import pytest

from tasks.base.data_files import (
    DataDamaged,
    DataFile,
    DataMissing,
    cache_folder,
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
