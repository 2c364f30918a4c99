"""A module of the user's that hides a package of the suite is refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest


def python(folder, *words):
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["tasks.py", "moeut.py", "tasks/__init__.py"])
def test_a_command_says_which_file_hides_a_package(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine = 1\n")
    package = file.stem if file.stem != "__init__" else "tasks"
    done = python(tmp_path, "-m", "runners.sweep", "--help")
    assert done.returncode == 2
    assert done.stderr == (
        f"{file}: hides the suite's package {package!r}, since Python looks in the working folder "
        "first; rename it, work in another folder, or start python with -P\n"
    )
    done = python(tmp_path, "-c", "import runners")
    assert "ImportError: " in done.stderr
    assert f"hides the suite's package {package!r}" in done.stderr


@pytest.mark.parametrize(
    ("name", "command"), [("runners", "runners.train"), ("tasks", "tasks.show")]
)
def test_beside_a_file_that_hides_the_command_itself_python_says_so(tmp_path, name, command):
    """No code of ours runs then; with -P Python does not look there."""
    (tmp_path / f"{name}.py").write_text("mine = 1\n")
    done = python(tmp_path, "-m", command, "--help")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"specification for {command!r}" in done.stderr
    done = python(tmp_path, "-P", "-m", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_folders_of_data_hide_nothing(tmp_path):
    (tmp_path / "tasks").mkdir()
    assert python(tmp_path, "-c", "import runners, tasks; tasks.TASKS").returncode == 0
