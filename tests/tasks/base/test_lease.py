"""One holder at a time, whoever dies, sleeps or comes late; the dead hold nothing."""

import contextlib
import json
import os
import random
import signal
import time

import pytest

from tasks.base import lease as module
from tasks.base.lease import Lease, Locked, Lost, holder
from tasks.base.owner import Owner

FAST = {"heartbeat": 0.05, "stale": 0.6}


def fork(work, *arguments):
    """Run a function in a forked process, which ends with 0, or 1 after an error."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(*arguments)
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold(directory, descriptor=None, seconds=60.0, **times):
    with Lease(directory, **times):
        if descriptor is not None:
            os.write(descriptor, b"x")
        time.sleep(seconds)


@pytest.fixture
def other(tmp_path):
    """A process that holds the lease, killed at the end."""
    read, write = os.pipe()
    pid = fork(lambda: hold(tmp_path, write, **FAST))
    os.read(read, 1)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def leave_foreign(directory, *, released=False, **changes):
    """Leave the lease of a process of another machine."""
    owner = Owner.here().to_dict() | {"host": "elsewhere", "boot": "another", "pid": 7} | changes
    folder = directory / ".lease"
    folder.mkdir(exist_ok=True)
    content = owner | {"beats": 3, "time": time.time(), "is_released": released}
    (folder / "4").write_text(json.dumps(content))
    return folder / "4"


def content(directory):
    (path,) = (directory / ".lease").iterdir()
    return int(path.name), json.loads(path.read_text())


def test_holder_stands_in_the_file_and_gives_it_back(tmp_path):
    with Lease(tmp_path):
        number, found = content(tmp_path)
        assert (number, found["pid"], found["is_released"]) == (1, os.getpid(), False)
    number, found = content(tmp_path)
    assert (number, found["is_released"]) == (1, True)
    with Lease(tmp_path):
        assert content(tmp_path)[0] == 2  # and no file of the holder before is left


def test_second_process_is_told_at_once_who_holds_it(tmp_path, other):
    began = time.monotonic()
    with pytest.raises(Locked, match=f"in use by process {other} on "), Lease(tmp_path):
        pass
    assert time.monotonic() - began < 0.5
    assert holder(tmp_path).startswith(f"process {other} on ")


def test_two_leases_of_one_process_exclude_each_other(tmp_path):
    with Lease(tmp_path), pytest.raises(Locked), Lease(tmp_path):
        pass


def test_lease_of_a_killed_process_is_taken_over_at_once(tmp_path, other):
    os.kill(other, signal.SIGKILL)
    os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)  # stays a zombie, which is dead
    said = []
    began = time.monotonic()
    with Lease(tmp_path, say=said.append):
        assert content(tmp_path)[1]["pid"] == os.getpid()
    assert time.monotonic() - began < 2  # a silent holder is given longer
    assert len(said) == 1
    assert f"taken over from process {other} on " in said[0]
    assert said[0].endswith("which has ended")


def test_number_of_a_dead_process_that_another_one_got_counts_as_dead(tmp_path):
    leave_foreign(tmp_path, **Owner.here().to_dict() | {"started": 1})
    with Lease(tmp_path):
        pass


def test_living_holder_is_waited_for(tmp_path):
    read, write = os.pipe()
    pid = fork(lambda: hold(tmp_path, write, seconds=0.5))
    os.read(read, 1)
    with Lease(tmp_path, wait=10.0):
        pass
    assert status_of(pid) == 0


def test_lease_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), Lease(tmp_path):
        raise KeyError
    with Lease(tmp_path):
        pass


def test_silent_foreign_lease_is_taken_over_when_its_time_is_up(tmp_path):
    leave_foreign(tmp_path)
    said = []
    began = time.monotonic()
    with Lease(tmp_path, say=said.append, **FAST):
        assert content(tmp_path)[0] == 5
    assert 0.6 <= time.monotonic() - began < 3.0
    assert "in use by process 7 on elsewhere; waiting for a sign of life" in said[0]
    assert "which gave no sign of life for 0.6 s" in said[1]


@pytest.mark.parametrize("text", ["", "{", '{"pid": 7}'])
def test_lease_that_names_nobody_is_taken_over_when_its_time_is_up(text, tmp_path):
    """A process may be killed between making the file and writing it."""
    leave_foreign(tmp_path).write_text(text)
    began = time.monotonic()
    with Lease(tmp_path, **FAST):
        pass
    assert time.monotonic() - began >= 0.6


def test_foreign_lease_that_was_given_back_is_free(tmp_path):
    leave_foreign(tmp_path, released=True)
    with Lease(tmp_path):
        pass


def test_foreign_holder_that_renews_is_left_alone_whatever_its_clock(tmp_path):
    path = leave_foreign(tmp_path)
    found = json.loads(path.read_text())

    def renew():
        for beat in range(100):
            new = path.with_name("renewed")
            new.write_text(json.dumps(found | {"beats": beat, "time": -1e9}))
            new.rename(path)
            time.sleep(0.05)

    pid = fork(renew)
    with pytest.raises(Locked, match="in use by process 7 on elsewhere"), Lease(tmp_path, **FAST):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_pause_of_the_waiting_process_does_not_count(tmp_path, monkeypatch):
    """In it no renewal could have been seen."""
    watch, entry = module._Watch(60.0), module._Entry(1, b"")
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    watch.look(entry)
    watch.look(entry)
    for seconds in (0.2, 0.1, 3600.0):
        now[0] += seconds
        watch.look(entry)
    assert watch.silence == pytest.approx(0.3 + 2 * module.POLL_SECONDS)


def test_waiting_ends_when_a_stop_is_asked_for(tmp_path):
    leave_foreign(tmp_path)

    def check():
        raise InterruptedError

    with pytest.raises(InterruptedError), Lease(tmp_path, check=check):
        pass
    assert content(tmp_path)[0] == 4


def test_suspended_holder_loses_the_lease_and_notices(tmp_path):
    read, write = os.pipe()
    wait, wake = os.pipe()

    def work():
        with Lease(tmp_path, **FAST) as own:
            assert own.is_held()
            own.confirm()
            os.write(write, b"x")
            os.read(wait, 1)  # suspended meanwhile
            # Asked before the heartbeat had time to look: ``confirm`` looks itself.
            with pytest.raises(Lost, match="taken over by another process"):
                own.confirm()
            assert not own.is_held()

    pid = fork(work)
    assert os.read(read, 1) == b"x"
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    with Lease(tmp_path, **FAST) as own:  # after 0.6 s: a process of this machine, not dead
        assert content(tmp_path)[0] == 2
        os.kill(pid, signal.SIGCONT)
        os.write(wake, b"x")
        assert status_of(pid) == 0
        own.confirm()  # what it did on leaving changed nothing
        assert content(tmp_path) == (2, content(tmp_path)[1] | {"pid": os.getpid()})


def test_successor_counts_from_the_moment_that_its_file_is_there(tmp_path):
    """It may be killed before it removes ours."""
    with Lease(tmp_path) as own:
        (tmp_path / ".lease" / "2").touch()
        with pytest.raises(Lost):
            own.confirm()
    assert not json.loads((tmp_path / ".lease" / "1").read_text())["is_released"]


def test_long_step_without_a_look_is_followed_by_one(tmp_path, monkeypatch):
    with Lease(tmp_path, heartbeat=60.0) as own:
        assert own.is_held()
        for path in (tmp_path / ".lease").iterdir():
            path.rename(path.with_name("2"))
        assert own.is_held()  # looked at less than a second ago
        monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
        assert not own.is_held()


def test_late_claim_of_a_number_whose_turn_has_passed_changes_nothing(tmp_path):
    with Lease(tmp_path), Lease(tmp_path / ".lease"):  # any other directory
        pass
    leave_foreign(tmp_path)  # the fourth lease
    late = Lease(tmp_path)
    assert not late._claim(1)  # it saw the first one ended, long ago
    assert not (tmp_path / ".lease" / "2").exists()
    assert (tmp_path / ".lease" / "4").exists()


def test_shown_as_held_is_what_lives(tmp_path):
    assert holder(tmp_path) is None
    path = leave_foreign(tmp_path)
    assert holder(tmp_path) == "process 7 on elsewhere"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"time": time.time() - 3600}))
    assert holder(tmp_path) is None  # killed an hour ago, somewhere
    leave_foreign(tmp_path, released=True)
    assert holder(tmp_path) is None


def test_no_flock_is_needed(tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with Lease(tmp_path):
        pass


def test_full_disk_while_renewing_is_survived(tmp_path, monkeypatch, caplog):
    with Lease(tmp_path, **FAST) as own:
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(28, "No space left on device")

            patch.setattr(module.os, "pwrite", full)
            time.sleep(0.3)
        assert own.is_held()
        beats = content(tmp_path)[1]["beats"]
        time.sleep(0.3)
        assert content(tmp_path)[1]["beats"] > beats
    assert caplog.text.count("cannot be renewed") == 1  # once, not every time


def work_in_turns(directory, seed, until):
    """Hold the lease again and again; fail if another process works at the same time."""
    generator = random.Random(seed)
    inside = directory / "inside"
    while time.monotonic() < until and not (directory / "over").exists():
        try:
            with Lease(directory, wait=5.0, heartbeat=0.05, stale=3.0) as own:
                marker = inside / f"{os.getpid()}-{own._number}"
                marker.touch()
                time.sleep(generator.uniform(0.0, 0.01))
                own.confirm()
                others = [name for name in os.listdir(inside) if name != marker.name]
                # Those of the killed stay: of them the lease knows that they are dead.
                living = [name for name in others if _is_running(int(name.split("-")[0]))]
                assert living == [], f"{marker.name} together with {living}"
                marker.unlink()
                with open(directory / "count", "a") as file:
                    file.write("x")
        except Locked:
            pass


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_of_many_processes_one_works_at_a_time_though_some_are_killed(tmp_path):
    (tmp_path / "inside").mkdir()
    until = time.monotonic() + 120.0  # a busy machine takes its time
    seeds = iter(range(1000))
    running = [fork(work_in_turns, tmp_path, next(seeds), until) for _ in range(5)]
    generator = random.Random(0)
    count = tmp_path / "count"
    killed = 0
    while killed < 16 or not count.exists() or count.stat().st_size <= 50:
        assert time.monotonic() < until
        time.sleep(generator.uniform(0.02, 0.2))
        victim = generator.choice(running)
        os.kill(victim, signal.SIGKILL)
        assert status_of(victim) == -signal.SIGKILL, "it had failed by itself"
        running.remove(victim)
        running.append(fork(work_in_turns, tmp_path, next(seeds), until))
        killed += 1
    (tmp_path / "over").touch()
    assert [status_of(pid) for pid in running] == [0] * 5
