"""Real signals to real processes: what was asked to stop continues, what was killed loses little.

Drivers are forked, since importing torch takes longer than everything they do here; the workers
that they start are processes of their own.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from runners import sweep, train

LONG = ("train.steps=100000", "train.checkpoint_interval=1000000", "evaluate.interval=null")


class Forked:
    """A command line in a forked process, its output in a file."""

    def __init__(self, main, arguments, output: Path) -> None:
        self.output = output
        self.status = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                os._exit(main([str(word) for word in arguments]))
            finally:
                os._exit(99)

    def wait_for(self, word, *, seconds=60.0):
        deadline = time.monotonic() + seconds
        while not (self.output.is_file() and word in self.output.read_text()):
            assert self.running(), self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)

    def running(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is None

    def send(self, number):
        os.kill(self.pid, number)

    def end(self, *, seconds=60.0):
        deadline = time.monotonic() + seconds
        while self.running():
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)
        return self.status


@pytest.fixture
def start(tmp_path, capfd):
    """Return a function that forks a command line, with the real standard output to redirect."""
    commands = []

    def fork(main, *arguments):
        with capfd.disabled():
            command = Forked(main, arguments, tmp_path / f"output{len(commands)}")
        commands.append(command)
        return command

    yield fork
    for command in commands:
        if command.running():
            command.send(signal.SIGKILL)
            command.end()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)],
    ids=["SIGTERM", "SIGINT", "SIGUSR1"],
)
def test_signal_saves_and_ends_with_a_status(number, status, tmp_path, run_text, start):
    file = tmp_path / "tiny.yaml"
    file.write_text(run_text())
    command = start(train.main, file, *LONG, f"--run-directory={tmp_path / 'run'}")
    command.wait_for("step ")
    began = time.monotonic()
    command.send(number)
    command.send(number)  # a second one changes nothing
    assert command.end() == status
    assert time.monotonic() - began < 10
    assert "the same command continues" in command.output.read_text()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert (checkpoint / "manifest.json").is_file()
    assert not (tmp_path / "run" / "error.json").exists()


@pytest.fixture
def sweep_file(tmp_path, run_text):
    lines = [line for line in run_text(architecture="universal").splitlines() if line]
    file = tmp_path / "killed.yaml"
    file.write_text(
        "base:\n"
        + "".join(f"  {line}\n" for line in lines)
        + "variants:\n  shallow: {model.depth.group: 1}\n  deep: {model.depth.group: 2}\n"
        "seeds: 2\n"
    )
    return file


def test_killed_sweep_ends_with_the_same_results(sweep_file, tmp_path, start):
    steps = ("train.steps=60", "train.checkpoint_interval=3", "evaluate.interval=20")
    options = (sweep_file, *steps, "--workers=1", "--no-figures")
    whole = start(sweep.main, *options, f"--runs-dir={tmp_path / 'whole'}")
    assert whole.end(seconds=120) == 0
    generator = random.Random(0)
    directory = tmp_path / "parts" / "killed"
    parts = (*options, f"--runs-dir={tmp_path / 'parts'}")
    for kill in range(3):
        command = start(sweep.main, *parts)
        command.wait_for("loss")  # a worker trains
        time.sleep(generator.uniform(0.0, 0.6))
        assert command.running(), f"kill {kill} came too late"
        command.send(signal.SIGKILL)
        command.end()
    last = start(sweep.main, *parts)
    assert last.end(seconds=120) == 0, last.output.read_text()
    for name in ("results.csv", "breakdown.csv"):
        expected = (tmp_path / "whole" / "killed" / name).read_bytes()
        assert (directory / name).read_bytes() == expected
        assert expected.count(b"\n") > 4
    starts = [
        json.loads(path.read_text())["starts"] for path in directory.glob("*/seed*/timings.json")
    ]
    assert len(starts) == 4
    assert max(starts) > 1


def test_interrupted_sweep_saves_its_runs(sweep_file, tmp_path, start):
    command = start(
        sweep.main, sweep_file, *LONG, f"--runs-dir={tmp_path}", "--workers=2", "--no-figures"
    )
    command.wait_for("deep seed 0: 1/")  # the longest begin first
    command.wait_for("deep seed 1: 1/")
    command.send(signal.SIGINT)
    assert command.end() == 130
    assert "the same command continues" in command.output.read_text()
    directory = tmp_path / "killed"
    assert len(list(directory.glob("*/seed*/checkpoints/step_*/manifest.json"))) == 2
    assert list(directory.glob("*/seed*/error.json")) == []
    leases = [json.loads(path.read_text()) for path in directory.glob("*/seed*/.lease/*")]
    assert [lease["is_released"] for lease in leases] == [True, True]  # both workers left in order
    assert (directory / "results.csv").is_file()
