"""Ctrl-C while a command imports is one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import runners
from runners.process.start import end_at_interrupt

COMMANDS = [
    path.stem
    for path in sorted(Path(runners.__file__).parent.glob("*.py"))
    if "exit_with(main)" in path.read_text(encoding="utf-8")
]


def hear_interrupts():
    """Undo what a shell does to the commands that it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_commands_are_found():
    assert {"sweep", "train", "evaluate", "report"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "bench"])
def test_interrupt_while_a_command_imports(command, tmp_path):
    slow = tmp_path / "argparse.py"  # which every command imports, and Python's own start does not
    slow.write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", f"runners.{command}", "--help"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")


@pytest.mark.parametrize("answer", [signal.SIG_IGN, lambda *_: None])
def test_what_else_answers_interrupts_stays(answer):
    before = signal.signal(signal.SIGINT, answer)
    try:
        end_at_interrupt()
        assert signal.getsignal(signal.SIGINT) is answer
    finally:
        signal.signal(signal.SIGINT, before)


def test_module_that_is_imported_and_not_run_answers_no_interrupts():
    before = signal.getsignal(signal.SIGINT)
    import runners.sweep  # noqa: F401

    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("command", [*COMMANDS, "bench"])
def test_help_imports_no_torch(command):
    words = [sys.executable, "-X", "importtime", "-m", f"runners.{command}", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"usage: python -m runners.{command} ")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "runners.process.stand_in" in imported
    assert "torch.torch_version" not in imported  # which torch itself imports first


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_interrupt_while_a_command_imports_torch(command, tmp_path):
    """Which it does after it has read its command line, when Ctrl-C is Python's again."""
    (tmp_path / "torch").mkdir()
    slow = tmp_path / "torch" / "__init__.py"
    slow.write_text(
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    print('caught')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", f"runners.{command}", "quickstart", "--runs-dir", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=30)
    assert (process.returncode, output, error) == (130, "", "interrupted\n")
