"""What is asked of Slurm, with commands that only say what they were given; tests/cluster has it
real."""

import json
import os
from pathlib import Path

import pytest

from runners.process.signals import Stop
from runners.sweeping.cluster_options import SlurmOptions
from runners.sweeping.executor import ClusterUnavailable, Job
from runners.sweeping.job_record import JobRecord, read_job
from runners.sweeping.slurm import SlurmExecutor
from runners.sweeping.slurm_job import torchrun


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return a function that puts a command of Slurm in the path, as a line of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name, line):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    return put


@pytest.fixture
def handed_over(tmp_path):
    """Three runs with the jobs 7_0, 7_1 and 7_2."""
    runs = [tmp_path / "demo" / f"seed{number}" for number in range(3)]
    for number, run in enumerate(runs):
        run.mkdir(parents=True)
        JobRecord(engine="slurm", job=f"7_{number}", directory=str(run.resolve())).write()
    return runs


def test_states_are_those_of_the_queue(commands, handed_over, tmp_path):
    commands("squeue", "printf '7_0|RUNNING\\n7_1|PENDING\\n7_2|COMPLETED\\n9_2|RUNNING\\n'")
    executor = SlurmExecutor(SlurmOptions(), sweep=tmp_path / "demo")
    assert executor.states(handed_over) == {handed_over[0]: "running", handed_over[1]: "queued"}
    commands("scancel", f'echo "$@" > {tmp_path}/cancelled')
    assert executor.cancel(handed_over) == 2
    assert (tmp_path / "cancelled").read_text() == "7_0 7_1\n"


def test_a_record_that_has_moved_means_nothing(handed_over, tmp_path):
    moved = tmp_path / "elsewhere"
    handed_over[0].rename(moved)
    assert read_job(moved, "slurm") is None
    assert read_job(handed_over[1], "slurm") == "7_1"
    assert read_job(handed_over[1], "ray") is None


def test_nothing_is_submitted_while_slurm_does_not_answer(commands, handed_over, tmp_path):
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    commands("sbatch", f"touch {tmp_path}/submitted")
    executor = SlurmExecutor(SlurmOptions(), sweep=tmp_path / "demo")
    jobs = [Job(run, 1) for run in handed_over]
    with pytest.raises(ClusterUnavailable, match=r"^squeue: slurm_load_jobs error: Unable to con"):
        executor.run(jobs, stop=Stop(), on_message=lambda *said: None)
    assert not (tmp_path / "submitted").exists()


def test_a_script_asks_for_what_the_options_say(commands, tmp_path):
    pytest.importorskip("submitit")
    commands("squeue", "true")
    commands("srun", "true")
    commands("scontrol", "echo 'MaxArraySize = 3'")
    commands("sbatch", f'cat "$1" >> {tmp_path}/scripts; echo "Submitted batch job 5"')
    runs = [tmp_path / "demo" / f"seed{number}" for number in range(5)]
    for run in runs:
        run.mkdir(parents=True)
    options = SlurmOptions(
        partition="p", time="1:00:00", memory="2G", nodes=2, sbatch={"hint": "compute_bound"}
    )
    executor = SlurmExecutor(options, sweep=tmp_path / "demo", per_gpu=2, detach=True)
    said = []
    jobs = [Job(run, 3, uses_gpu=True) for run in runs]
    executor.run(jobs, stop=Stop(), on_message=lambda path, message: said.append(message.text))
    assert said == ["4 runs submitted as job 5", "1 runs submitted as job 5"]
    scripts = (tmp_path / "scripts").read_text().splitlines()
    wanted = "partition=p time=1:00:00 mem=2G nodes=2 cpus-per-task=6 gpus-per-node=1 requeue"
    for option in (*wanted.split(), "signal=USR2@120", "array=0-1%2", "hint=compute_bound"):
        assert f"#SBATCH --{option}" in scripts
    # Two runs share a job; the last array has one job, and so none.
    ids = [json.loads((run / "job.json").read_text())["job"] for run in runs]
    assert ids == ["5_0", "5_0", "5_1", "5_1", "5"]


def test_ranks_of_two_nodes_meet_at_the_first():
    environment = {"SLURM_JOB_ID": "31005", "SLURM_NODEID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.1"}
    words = torchrun(environment, num_nodes=2, ranks_per_node=4)
    wanted = "--nnodes=2 --node-rank=1 --nproc-per-node=4 --master-addr=10.1 --master-port=21005"
    assert words[-5:] == wanted.split()
    assert Path(words[0]).name.startswith("python")
