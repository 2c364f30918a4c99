"""Files that appear whole or not at all, checksums, and the lock on a data folder."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time

import pytest

from tasks.base import storage
from tasks.base.lease import Lease, Locked
from tasks.base.storage import lock_folder, make_folder_atomically, open_atomically


def test_text_bytes_and_json_are_written_as_they_are(tmp_path):
    storage.write_atomically(tmp_path / "text", "é\n")
    storage.write_atomically(tmp_path / "bytes", b"\x00\xff")
    storage.write_json(tmp_path / "json", {"a": ["é"]})
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "json").read_text() == '{\n "a": [\n  "é"\n ]\n}\n'
    assert len(list(tmp_path.iterdir())) == 3


def test_a_new_file_has_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_atomically(tmp_path / "a", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_the_old_content_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    with open_atomically(path) as stream:
        stream.write(b"af")
        stream.flush()
        assert path.read_text() == "before"
        stream.write(b"ter")
    assert path.read_text() == "after"

    def write_half():
        with open_atomically(path) as stream:
            stream.write(b"never")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_half()
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_is_durable_is_brought_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("tasks.base.storage.os.fsync", flushed.append)
    storage.write_atomically(tmp_path / "a", "a", durable=False)
    assert flushed == []
    storage.write_atomically(tmp_path / "a", "b")
    assert len(flushed) == 1


def test_a_folder_appears_whole_and_replaces_the_one_before(tmp_path):
    goal = tmp_path / "made" / "folder"
    for name in ("one", "two"):
        with make_folder_atomically(goal) as folder:
            (folder / name).write_text(name)
            assert not (goal / name).exists()
        assert [path.name for path in goal.iterdir()] == [name]

    def write_half():
        with make_folder_atomically(goal) as folder:
            (folder / "three").write_text("three")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert [path.name for path in goal.iterdir()] == ["two"]
    assert [path.name for path in goal.parent.iterdir()] == ["folder"]


def test_a_file_is_hashed_as_its_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert storage.sha256_of_file(tmp_path / "a") == storage.sha256_of(data) == expected


def test_a_data_folder_has_one_holder_at_a_time(tmp_path, caplog):
    folder, beside = tmp_path / "made" / "data", tmp_path / "made" / ".data.lock"
    order = []

    def prepare():
        with lock_folder(folder):
            order.append("second")

    second = threading.Thread(target=prepare)
    with caplog.at_level("INFO"), lock_folder(folder):
        with pytest.raises(Locked), Lease(beside):
            pass
        second.start()
        time.sleep(0.5)
        order.append("first")
    second.join(timeout=30)
    assert order == ["first", "second"]
    assert f"{beside}: in use by process {os.getpid()} on " in caplog.text
    with pytest.raises(ZeroDivisionError), lock_folder(folder):
        raise ZeroDivisionError
    with lock_folder(folder):
        pass


LACKING = [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP]


@pytest.mark.parametrize("number", LACKING)
def test_a_file_system_without_fsync_is_written_to(tmp_path, monkeypatch, number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write_atomically(tmp_path / "a", "a")
    storage.flush_folder(tmp_path)
    assert (tmp_path / "a").read_text() == "a"


def test_a_disk_that_fails_to_flush_is_no_such_file_system(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        storage.write_atomically(tmp_path / "a", "a")
    with pytest.raises(OSError, match="Input/output"):
        storage.flush_folder(tmp_path)


def test_a_folder_of_the_image_below_is_replaced(tmp_path, monkeypatch):
    """On overlayfs, such a folder cannot be renamed."""
    goal = tmp_path / "folder"
    goal.mkdir()
    (goal / "old").write_text("old")
    rename = os.rename

    def refuse(source, target):
        if source == goal:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with make_folder_atomically(goal) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in goal.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSYS, "lacks an operation that is needed here: name another place, for runs by"),
        (
            errno.EROFS,
            "may not be written to: name another place, for runs by --runs-dir, for data",
        ),
        (errno.ENOSPC, "make room, and the same command continues"),
        (errno.EDQUOT, "make room, and the same command continues"),
        (errno.ESTALE, "enter it anew by cd or mount it again, and the same command continues"),
        (errno.EIO, "the same command tries again"),
    ],
)
def test_what_to_do_is_said(number, remedy):
    assert remedy in storage.why_not_written(OSError(number, os.strerror(number), "here"))
