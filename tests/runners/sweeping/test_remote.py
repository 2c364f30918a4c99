"""The far end of a job hears two signals, and passes each on in its own way."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from runners.process.run_directory import RunDirectory
from runners.sweeping.remote import Children
from tasks.base.lease import Lease

LONG = ("train.steps=100000", "evaluate.interval=null", "train.checkpoint_interval=1000000")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_run_saves_at_a_signal_to_its_job(make_run, number):
    directory = make_run("long", *LONG)
    children = Children([directory], num_threads=1)

    def send():
        while (
            not any((directory / ".lease").glob("*")) or not (directory / "metrics.jsonl").exists()
        ):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    assert children.run() == 75
    assert (children.is_at_limit, children.is_cancelled) == (number == signal.SIGUSR2, number == 15)
    assert RunDirectory(directory).status() == "resumable"
    (lease,) = (directory / ".lease").iterdir()
    assert json.loads(lease.read_text())["is_released"]
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


LAUNCHER = [sys.executable, "-m", "runners.sweeping.torchrun", "--standalone", "--nproc-per-node=2"]


@pytest.mark.parametrize("launcher", [[], LAUNCHER], ids=["alone", "torchrun"])
def test_a_run_that_another_process_works_on_is_to_go_on(make_run, launcher):
    directory = make_run("held")
    with Lease(directory):
        assert Children([directory], num_threads=1, launcher=launcher).run() == 75
    assert "in use by" in (directory / "log.txt").read_text()


@pytest.mark.parametrize("launcher", [[], LAUNCHER], ids=["alone", "torchrun"])
def test_a_config_that_is_refused_asks_for_no_other_turn(make_run, launcher):
    directory = make_run("bad")
    (directory / "config.yaml").write_text("nonsense: 1\n")
    assert Children([directory], num_threads=1, launcher=launcher).run() == 2
    assert "nonsense" in (directory / "log.txt").read_text()
