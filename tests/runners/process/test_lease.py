"""One holder at a time; the dead hold nothing."""

import json
import os
import signal
import time

import pytest

from runners.process.lease import DirectoryLock, Locked


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the lock, and kill it at the end."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with DirectoryLock(tmp_path):
                os.write(write, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(read, 1)
    yield process
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_second_process_is_told_who_holds_the_lock(tmp_path, holder):
    with pytest.raises(Locked, match=f"in use by process {holder} on "), DirectoryLock(tmp_path):
        pass


def test_lock_of_a_killed_process_is_taken_over(tmp_path, caplog):
    process = os.fork()
    if process == 0:
        DirectoryLock(tmp_path).__enter__()
        os._exit(0)
    os.waitpid(process, 0)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == process
    with caplog.at_level("INFO"), DirectoryLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert f"taken over from process {process}" in caplog.text
    assert (tmp_path / ".lock").read_text() == ""


def test_lock_is_waited_for(tmp_path):
    process = os.fork()
    if process == 0:
        try:
            with DirectoryLock(tmp_path):
                time.sleep(0.5)
        finally:
            os._exit(0)
    time.sleep(0.2)
    with DirectoryLock(tmp_path, wait=10.0):
        pass
    os.waitpid(process, 0)


def test_lock_left_on_another_host_is_refused(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(Locked, match="left by process 1 on elsewhere"), DirectoryLock(tmp_path):
        pass


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), DirectoryLock(tmp_path):
        raise KeyError
    with DirectoryLock(tmp_path):
        pass
