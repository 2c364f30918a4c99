"""Workers serve run after run; one that dies takes only its own run with it."""

import io
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from runners.process import signals
from runners.process.messages import Ended, Notice, Started, TrainingProgress
from runners.process.run_directory import RunDirectory
from runners.sweep import sweep_status
from runners.sweeping.executor import Job
from runners.sweeping.local import LocalExecutor, default_workers, in_turn, work


class Messages(list):
    """Collects messages, and does something at one of them."""

    def __init__(self, react=None):
        self.react = react

    def __call__(self, directory, message):
        self.append((directory, message))
        if self.react:
            self.react(directory, message)

    def ended(self):
        return {d.name: m.status for d, m in self if isinstance(m, Ended)}


def pid_at_work(directory):
    (lease,) = (directory / ".lease").iterdir()
    return json.loads(lease.read_text())["pid"]


LONG = ("train.steps=100000", "evaluate.interval=null", "train.checkpoint_interval=1000000")
SHORT = ("train.steps=4", "evaluate.interval=null")


@pytest.fixture
def run_jobs(monkeypatch):
    def run(directories, *, workers=1, react=None, stop=None):
        messages = Messages(react)
        jobs = [Job(directory, 1) for directory in directories]
        LocalExecutor(workers).run(jobs, stop=stop or signals.Stop(), on_message=messages)
        return messages

    return run


def test_one_worker_serves_runs_in_turn_and_a_failure_stops_no_other(make_run, run_jobs):
    good, other = make_run("good", *SHORT), make_run("other", *SHORT)
    bad = make_run("bad", *SHORT)
    (bad / "config.yaml").write_text((bad / "config.yaml").read_text() + "nonsense: 1\n")
    spoilt = make_run("spoilt", *SHORT)
    (spoilt / "checkpoints" / "step_000002").mkdir(parents=True)
    messages = run_jobs([bad, good, spoilt, other])
    assert messages.ended() == {
        "bad": "refused",
        "good": "done",
        "spoilt": "failed",
        "other": "done",
    }
    assert (
        "every checkpoint is damaged" in json.loads((spoilt / "error.json").read_text())["message"]
    )
    # Served second or third, a run is bitwise what it is alone.
    one, two = (d / "checkpoints" / "step_000004" / "model.safetensors" for d in (good, other))
    assert one.read_bytes() == two.read_bytes()
    pids = {(d / "log.txt").read_text().split("process ")[1].split()[0] for d in (good, other)}
    assert len(pids) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_is_said_in_one_line_and_stops_no_other(make_run, run_jobs):
    full, good = make_run("full", *SHORT), make_run("good", *SHORT)
    (full / "log.txt").symlink_to("/dev/full")
    messages = run_jobs([full, good])
    assert messages.ended() == {"full": "failed", "good": "done"}
    (reason,) = [m.reason for d, m in messages if d == full and isinstance(m, Ended)]
    assert reason.startswith("cannot be written: [Errno 28] No space left on device; make room")
    assert RunDirectory(full).status() == "new"  # the same command tries it again


def test_a_worker_that_dies_fails_its_run_alone(make_run, run_jobs):
    long, short = make_run("long", *LONG), make_run("short", *SHORT)

    def abort(directory, message):
        if directory == long and isinstance(message, TrainingProgress):
            os.kill(pid_at_work(long), signal.SIGABRT)

    messages = run_jobs([long, short], react=abort)
    assert messages.ended() == {"long": "failed", "short": "done"}
    assert "signal SIGABRT" in json.loads((long / "error.json").read_text())["message"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_run_is_tried_once_more_after_the_others_and_has_not_failed(
    make_run, run_jobs, times
):
    """SIGKILL is what Linux sends when memory runs out."""
    big = make_run("big", "train.steps=300", "evaluate.interval=null")
    small = make_run("small", *SHORT)
    killed = []

    def kill(directory, message):
        is_new = len(killed) < [d for d, m in messages if isinstance(m, Started)].count(big)
        if directory == big and isinstance(message, TrainingProgress) and is_new:
            if len(killed) < times:
                os.kill(pid_at_work(big), signal.SIGKILL)
            killed.append(message.step)

    messages = Messages(kill)
    jobs = [Job(directory, 1) for directory in (big, small)]
    LocalExecutor(1).run(jobs, stop=signals.Stop(), on_message=messages)
    assert [d.name for d, m in messages if isinstance(m, Started)] == ["big", "small", "big"]
    (notice,) = [m.text for _, m in messages if isinstance(m, Notice) and "SIGKILL" in m.text]
    assert "most likely since memory ran out" in notice
    assert not (big / "error.json").exists()
    if times == 1:
        assert messages.ended() == {"big": "done", "small": "done"}
    else:
        assert messages.ended() == {"big": "killed", "small": "done"}
        (reason,) = [m.reason for _, m in messages if isinstance(m, Ended) and m.reason]
        assert "memory ran out" in reason
        assert sweep_status(Counter(messages.ended().values()), signals.Stop()) == 75
        assert run_jobs([big]).ended() == {"big": "done"}  # the same command goes on


def test_stop_saves_what_runs_and_starts_nothing(make_run, run_jobs):
    long, never = make_run("long", *LONG), make_run("never", *SHORT)
    stop = signals.Stop()

    def ask(directory, message):
        if isinstance(message, TrainingProgress):
            stop.request()

    messages = run_jobs([long, never], react=ask, stop=stop)
    assert messages.ended() == {"long": "stopped"}
    assert RunDirectory(long).status() == "resumable"
    assert RunDirectory(never).status() == "new"


def test_stop_does_not_wait_for_a_worker_that_still_imports(make_run, run_jobs):
    first, never = make_run("first", *SHORT), make_run("never", *SHORT)
    stop = signals.Stop()

    def ask(directory, message):
        if isinstance(message, Started):
            stop.request()

    messages = run_jobs([first, never], react=ask, stop=stop)
    assert messages.ended() == {"first": "stopped"}
    assert not (first / "log.txt").exists()  # the first thing that a worker writes
    assert RunDirectory(first).status() == RunDirectory(never).status() == "new"


def test_worker_dies_with_its_driver(make_run):
    directory = make_run("long", *LONG)
    read, write = os.pipe()
    driver = os.fork()
    if driver == 0:
        try:
            LocalExecutor(1).run(
                [Job(directory, 1)],
                stop=signals.Stop(),
                on_message=lambda _, message: os.write(write, type(message).__name__.encode()),
            )
        finally:
            os._exit(1)
    while b"Progress" not in os.read(read, 4096):
        pass
    pid = pid_at_work(directory)
    os.kill(pid, 0)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlived its driver by 5 s")


def test_the_last_jobs_begin_with_the_longest():
    jobs = [Job(Path(str(n)), 1, work=n % 5) for n in range(40)]
    begun = in_turn(jobs, 2)
    assert begun[:8] == jobs[:8]
    assert sorted(begun, key=jobs.index) == jobs
    assert [job.work for job in begun[8:]] == sorted((n % 5 for n in range(8, 40)), reverse=True)
    equal = [Job(Path(str(n)), 1) for n in range(9)]
    assert in_turn(equal, 2) == equal


def test_no_workers_is_an_error():
    with pytest.raises(ValueError, match="workers=0: must be at least 1"):
        LocalExecutor(0)


def test_worker_quits_on_an_order(monkeypatch):
    assert work(io.BytesIO(b'{"order": "quit"}\n'), io.BytesIO()) == 0


def test_default_workers_follow_cores_and_threads(monkeypatch):
    monkeypatch.setattr("runners.sweeping.local.available_cores", lambda: 7)
    for threads, workers in ((1, 7), (2, 3), (9, 1)):
        jobs = [Job(Path(), 1), Job(Path(), threads)]
        assert default_workers(jobs) == (workers, [])


def test_default_workers_of_gpu_runs_are_one_a_visible_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    gpu = Job(Path(), 1, uses_gpu=True)
    assert default_workers([gpu]) == (2, ["2", "5"])
    assert default_workers([gpu, Job(Path(), 1)])[1] == []
    assert LocalExecutor.for_jobs([gpu] * 3, None).num_workers == 2
    assert LocalExecutor.for_jobs([gpu], 4).num_workers == 1


def environment_of(pid: int) -> bytes:
    """Return a process's variables, which are empty for a moment while it starts."""
    deadline = time.monotonic() + 10
    while not (found := Path(f"/proc/{pid}/environ").read_bytes()):
        assert time.monotonic() < deadline
    return found


def test_workers_that_share_a_gpu_see_it_and_what_mps_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/mps/pipe")
    jobs = [Job(tmp_path / name, 1, uses_gpu=True) for name in "abc"]
    executor = LocalExecutor.for_jobs(jobs, None, per_gpu=2)
    stop, seen = signals.Stop(), []

    def look(directory, message):
        if isinstance(message, Started):
            pid = executor._workers[-1].process.pid
            seen.append(environment_of(pid).split(b"\0"))
            if len(seen) == 2:
                stop.request()  # before they have imported anything, let alone a GPU

    executor.run(jobs, stop=stop, on_message=look)
    assert len(seen) == 2
    for variables in seen:
        assert b"CUDA_VISIBLE_DEVICES=3" in variables
        assert b"CUDA_MPS_PIPE_DIRECTORY=/mps/pipe" in variables
