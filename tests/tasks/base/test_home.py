"""Without a home directory, one line names what to set, and help is printed all the same."""

import os
import subprocess
import sys

import pytest

import tasks
from tasks.base.data_files import NoHome, cache_folder, data_folders

WITHOUT_HOME = """
import os.path, runpy, sys
os.path.expanduser = lambda path: path
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def no_home(monkeypatch):
    for name in ("MOEUT_CACHE", "MOEUT_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def run(*words):
    environment = {k: v for k, v in os.environ.items() if k not in ("MOEUT_CACHE", "MOEUT_DATA")}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME, *words],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_the_cache_names_the_variable_to_set(no_home, monkeypatch, tmp_path):
    with pytest.raises(NoHome, match=r"no home directory for ~/.cache/moeut; set MOEUT_CACHE to"):
        data_folders()
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path / "data"))
    assert data_folders() == [tmp_path / "data"]
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    assert data_folders() == [tmp_path / "data", tmp_path / "cache"]
    assert cache_folder() == tmp_path / "cache"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("~nobody_here/x.tsv", "no home directory of ~nobody_here"), ("~/x.tsv", "set HOME")],
)
def test_a_path_below_a_home_that_is_not_there_is_refused(
    no_home, tmp_path, path, reason, monkeypatch
):
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^task\.train='~.*" + reason + ", or write the whole path"
    ):
        tasks.create("file", train=path, test=path).splits()
    language = {"corpus": "files", "context_length": 8, "tokenizer": "bytes"}
    with pytest.raises(ValueError, match=r"^task\.files='~.*" + reason):
        tasks.create("language", files=path, **language).data_hash()
    text = tmp_path / "x.txt"
    text.write_text("a text\n")
    with pytest.raises(ValueError, match=r"^task\.tokenizer='~.*" + reason):
        tasks.create("language", files=str(text), **language | {"tokenizer": path}).data_hash()


@pytest.mark.parametrize("module", ["tasks.fetch", "tasks.show", "runners.sweep"])
def test_help_is_printed(module):
    done = run(module, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout


def test_a_command_that_needs_data_ends_in_one_line():
    done = run("tasks.show", "cogs")
    assert done.returncode == 2
    assert "set MOEUT_CACHE" in done.stderr
    assert done.stderr.count("\n") == 1
