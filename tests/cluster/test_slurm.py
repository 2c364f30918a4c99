"""Sweeps on a real Slurm: the same results as here, and no failure of a cluster loses a run."""

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from runners.process.run_directory import RunDirectory
from runners.sweeping import slurm as engine
from runners.sweeping.watching import last_row
from tasks.base.lease import holder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SCRIPT = Path(__file__).parent / "slurm.sh"
LONG = ("train.steps=1000000", "train.checkpoint_interval=20", "seeds=1", "--only=universal")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(engine, "POLL_SECONDS", 1.0)


def shown(job, key):
    """Return a value of ``scontrol show job``."""
    text = subprocess.run(
        ["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=True
    ).stdout
    return re.search(rf"\b{key}=(\S+)", text)[1]


@pytest.fixture
def begin(run_sweep, capsys, wait_for):
    """Return a function that submits one long run; its directory and job, with a checkpoint."""
    return lambda *options: _begin(run_sweep, capsys, wait_for, *options)


def _begin(run_sweep, capsys, wait_for, *options):
    folder, status = run_sweep("slurm", *LONG, "--executor=slurm", "--detach", *options)
    assert status == 75
    said = capsys.readouterr()
    assert "1 runs submitted as job" in said.out
    assert said.err.splitlines()[-1] == "jobs in the queue go on; the same command continues"
    (directory,) = folder.glob("universal-*/seed0")
    job = json.loads((directory / "job.json").read_text())["job"]
    wait_for(lambda: list(directory.glob("checkpoints/step_*")), what="a checkpoint")
    return directory, job


def starts(directory):
    return directory.joinpath("log.txt").read_text().count(": resumable\n")


def test_a_sweep_has_the_same_results_as_on_one_machine(slurm, run_sweep, capsys):
    local, status = run_sweep("local")
    assert status == 0
    remote, status = run_sweep(
        "slurm", "--executor=slurm", "--slurm", "time=5", "parallel=4", "memory=500M"
    )
    output = capsys.readouterr().out
    assert status == 0, output
    assert output.count("12 runs submitted as job") == 1  # one array, for there is one kind of job
    assert (remote / "results.csv").read_bytes() == (local / "results.csv").read_bytes()
    assert len((local / "results.csv").read_text().splitlines()) > 12
    assert run_sweep("slurm", "--executor=slurm")[1] == 0
    assert "12 runs: 12 done" in capsys.readouterr().out


def test_requeued_cancelled_and_submitted_again(slurm, run_sweep, begin, wait_for, capsys):
    directory, job = begin()
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for(lambda: starts(directory) == 1, what="the second start")
    assert shown(job, "Restarts") == "1"
    options = (*LONG, "--executor=slurm")
    assert run_sweep("slurm", *options, "--detach")[1] == 75  # what is there is not submitted again
    output = capsys.readouterr().out
    assert "1 runs: 1 running" in output
    assert "submitted" not in output
    assert run_sweep("slurm", *options, "--cancel")[1] == 0
    assert "1 runs cancelled" in capsys.readouterr().out
    wait_for(lambda: shown(job, "JobState") in ("CANCELLED", "FAILED"), what="the end")
    assert RunDirectory(directory).status() == "resumable"
    assert "SIGTERM: finishing the step and saving" in (directory / "log.txt").read_text()
    run_sweep("slurm", *options, "--detach")
    assert "1 runs: 1 resumable" in capsys.readouterr().out
    assert json.loads((directory / "job.json").read_text())["job"] != job
    wait_for(lambda: starts(directory) == 2, what="the third start")
    assert run_sweep("slurm", *options, "--cancel")[1] == 0


def test_a_node_that_dies_gives_its_run_to_the_other(slurm, run_sweep, begin, wait_for, capsys):
    directory, job = begin()
    node = shown(job, "BatchHost")
    kill_slurmd(slurm, node)
    for leaf in processes_of(job):
        with contextlib.suppress(ProcessLookupError):  # srun's second process ends with its first
            os.kill(leaf, signal.SIGKILL)
    try:
        wait_for(lambda: starts(directory) == 1, what="the start on the other node")
        assert shown(job, "BatchHost") != node
    finally:
        subprocess.run([SCRIPT, "node", slurm, node], check=True)
    assert run_sweep("slurm", *LONG, "--executor=slurm", "--cancel")[1] == 0


def test_a_run_that_outlives_its_slurmd_keeps_its_directory(slurm, run_sweep, begin, wait_for):
    directory, job = begin()
    node, first = shown(job, "BatchHost"), holder(directory)
    kill_slurmd(slurm, node)
    log = directory / "log.txt"
    try:
        # Slurm takes the node for dead and starts the job on the other one, where it is refused.
        wait_for(lambda: "in use by" in log.read_text(), what="the second worker")
        assert holder(directory) == first
        before = last_row(directory / "metrics.jsonl")["step"]
        wait_for(lambda: last_row(directory / "metrics.jsonl")["step"] > before, what="a step")
    finally:
        subprocess.run([SCRIPT, "node", slurm, node], check=True)
    # The node that is back ends what it was not told to run, and the next turn has the directory.
    wait_for(lambda: holder(directory) not in (None, first), what="the worker after it")
    assert run_sweep("slurm", *LONG, "--executor=slurm", "--cancel")[1] == 0
    wait_for(lambda: holder(directory) is None, what="the end")
    rows = (directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert steps == sorted(set(steps))


def kill_slurmd(slurm, node):
    os.kill(int((slurm / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)


def processes_of(job):
    """Return the processes of a job as the death of its node would end them: first its steps.

    A step that saw its tasks end would tell Slurm so, as of a job that has failed.
    """
    steps, others = [], []
    for name in os.listdir("/proc"):
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(f"slurmstepd: [{job}.".encode()):
            steps.append(int(name))
        elif f"SLURM_JOB_ID={job}".encode() in environment.split(b"\0"):
            others.append(int(name))
    return steps + others


def test_a_run_saves_before_its_time_is_up_and_takes_another_turn(
    slurm, run_sweep, begin, wait_for
):
    # Slurm looks every half minute and then sends early: so not in the first twenty seconds, in
    # which a busy machine may not have started Python yet.
    directory, job = begin("--slurm", "time=1", "save_seconds=10")
    wait_for(lambda: starts(directory) == 1, seconds=400, what="the second turn")
    assert int(shown(job, "Restarts")) >= 1  # on a busy machine a turn may end before the run began
    log = (directory / "log.txt").read_text()
    assert "SIGUSR2: finishing the step and saving" in log
    assert run_sweep("slurm", *LONG, "--executor=slurm", "--cancel")[1] == 0


def test_several_ranks_on_two_nodes(slurm, run_sweep, capsys):
    options = ("train.steps=8", "seeds=1", "--only=universal", "--executor=slurm")
    folder, status = run_sweep("slurm", *options, "--slurm", "nodes=2", "processes=2")
    assert status == 0, capsys.readouterr()
    (directory,) = folder.glob("universal-*/seed0")
    assert json.loads((directory / "env.json").read_text())["ranks"] == 4
