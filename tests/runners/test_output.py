"""Whatever reads the output of a command, and in whatever encoding, the status is the right one."""

import os
import subprocess
import sys

import pytest

COMMANDS = {
    **{
        f"runners.{name}": 75
        for name in (
            *("train", "sweep", "run", "evaluate", "report", "generate", "export", "harness"),
            "bench",
        )
    },
    # A reader that has seen enough of a listing is no error.
    **{f"tasks.{name}": 0 for name in ("show", "prepare", "fetch", "export")},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_without_utf8_and_without_a_reader(command):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", command, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(timeout=60), error) == (COMMANDS[command], b"")


def test_help_is_whole_without_utf8():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "runners.sweep", "--help"],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"?" in ended.stdout
    assert b"learning_rate" in ended.stdout


def test_a_sweep_whose_reader_goes_can_go_on(run_text, tmp_path):
    file = tmp_path / "one.yaml"
    text = "".join(f"  {line}\n" for line in run_text().strip().splitlines())
    file.write_text(f"base:\n{text}variants:\n  one: {{}}\n")
    command = [sys.executable, "-m", "runners.sweep", str(file), "--no-figures", "--workers=1"]
    command += [f"--runs-dir={tmp_path / 'runs'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=120) == 75
    assert b"Traceback" not in error
    assert b"Exception" not in error
