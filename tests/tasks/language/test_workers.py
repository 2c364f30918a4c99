"""The lock on a folder that is being prepared."""

from __future__ import annotations

import fcntl
import os

import pytest

from tasks.language.workers import locked


def test_the_lock_is_one_and_leaves_no_file(tmp_path):
    path = tmp_path / "made" / ".lock"
    with locked(path), open(path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError
    assert not path.exists()


def test_a_file_that_its_holder_has_just_removed_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    taken = fcntl.flock
    removed = []

    def flock(stream, operation):
        taken(stream, operation)
        if not removed:  # the holder ended between our opening of its file and our lock on it
            removed.append(path)
            os.unlink(path)

    monkeypatch.setattr("tasks.language.workers.fcntl.flock", flock)
    with locked(path), open(path) as other, pytest.raises(BlockingIOError):
        taken(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert removed
    assert not path.exists()
