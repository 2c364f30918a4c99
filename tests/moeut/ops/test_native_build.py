"""How the C++ operations are built, with a compiler that only pretends: once, and whole."""

import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moeut.ops import native

pytestmark = pytest.mark.skipif(native._unfit() is not None, reason=str(native._unfit()))

COMPILER = """#!/bin/sh
# Writes what -o names, and notes that it ran; takes long while there is a file named slow.
echo build >> {folder}/builds
[ -e {folder}/slow ] && sleep 600
sleep 0.2
while [ "$1" != -o ]; do shift; done
echo made > "$2"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder in which builds are noted, and libraries are in ``cache``."""
    script = tmp_path / "compiler"
    script.write_text(COMPILER.format(folder=tmp_path))
    script.chmod(0o755)
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", f"env LANG=C {script}")
    return tmp_path


def builds(folder):
    noted = folder / "builds"
    return noted.read_text().count("build") if noted.exists() else 0


def names(folder):
    return sorted(path.suffix for path in (folder / "cache").iterdir())


def test_a_compiler_may_have_arguments_and_two_at_once_build_once(folder):
    with ThreadPoolExecutor(2) as threads:  # a lock of a file holds between threads as well
        first, second = threads.map(lambda _: native._built(), range(2))
    assert first == second
    assert first.read_text() == "made\n"
    assert builds(folder) == 1
    assert names(folder) == [".lock", ".so"]


def test_a_killed_build_is_cleared_away_and_made_again(folder):
    (folder / "slow").touch()
    command = "from moeut.ops import native; native._built()"
    process = subprocess.Popen([sys.executable, "-c", command], start_new_session=True)
    until = time.monotonic() + 60
    while not builds(folder):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # its compiler too
    process.wait(60)
    assert names(folder) == [".build", ".lock"]
    (folder / "cache" / "native-of-others.build").mkdir()  # a build of older sources
    (folder / "slow").unlink()
    assert native._built().read_text() == "made\n"
    assert names(folder) == [".lock", ".lock", ".so"]


@pytest.mark.usefixtures("folder")
def test_other_sources_are_another_library(tmp_path, monkeypatch):
    library = native._built()
    other = tmp_path / "native"
    other.mkdir()
    for source in Path(native.__file__).parent.glob("*"):
        if source.is_file():
            (other / source.name).write_bytes(source.read_bytes())
    with open(other / "loss.h", "a") as changed:
        changed.write("// changed\n")
    monkeypatch.setattr(native, "__file__", str(other / "__init__.py"))
    assert native._built() != library


def test_what_cannot_be_built_is_said_and_done_without(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/false")
    native.why_not.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert native.why_not().startswith("they cannot be built")
        assert "by PyTorch alone" in caplog.text
        monkeypatch.setenv("MOEUT_NATIVE", "0")
        native.why_not.cache_clear()
        assert native.why_not() == "MOEUT_NATIVE=0"
    finally:
        native.why_not.cache_clear()


def test_every_source_is_packaged():
    """What the library is built from has to be in a wheel."""
    here = Path(native.__file__).parent
    assert {*native.HEADERS, native.SOURCE} == {
        p.name for p in here.iterdir() if p.suffix in (".h", ".cpp")
    }
