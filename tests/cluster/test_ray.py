"""A sweep on a Ray cluster of two nodes, one of which dies: the same results as here."""

import os
import signal

import pytest

from runners.sweeping import ray_cluster
from runners.sweeping.job_record import FILE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture
def nodes():
    """Start a cluster on this machine and return it: a head without cores, and two nodes."""
    ray = pytest.importorskip("ray")
    utils = pytest.importorskip("ray.cluster_utils")
    cluster = started(utils.Cluster)
    yield cluster
    if ray.is_initialized():
        ray.shutdown()
    cluster.shutdown()


def started(make, tries=6):
    """Return a cluster with two nodes.

    Ray gives the helpers of a node 15 seconds to start, which cannot be set: on a busy machine it
    takes several tries, and as few other processes as can be.
    """
    cluster = make()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False, no_monitor=True)
        cluster.added = [cluster.add_node(num_cpus=2) for _ in range(2)]
    except Exception:  # Ray raises no other
        cluster.shutdown()
        if tries == 1:
            raise
        return started(make, tries - 1)
    return cluster


def test_a_sweep_survives_the_death_of_a_node(nodes, run_sweep, capsys, monkeypatch):
    local, status = run_sweep("local", "seeds=2")
    assert status == 0
    capsys.readouterr()
    killed = []
    looked = ray_cluster._Tasks._look

    def look(tasks, seconds, on_message):
        looked(tasks, seconds, on_message)
        if not killed and any(
            job.directory.joinpath(".lease").is_dir() for job in tasks._tasks.values()
        ):
            killed.append(nodes.added[0])
            nodes.remove_node(killed[0], allow_graceful=False)

    monkeypatch.setattr(ray_cluster._Tasks, "_look", look)
    address = f"address={nodes.address}"
    remote, status = run_sweep("ray", "seeds=2", "--executor=ray", "--ray", address)
    assert status == 0, capsys.readouterr()
    assert killed
    assert (remote / "results.csv").read_bytes() == (local / "results.csv").read_bytes()
    assert not list(remote.glob(f"*/*/{FILE}"))  # nothing is kept beside the runs
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert os.environ.get("RAY_ADDRESS") is None


def test_no_cluster_is_one_line(run_sweep, capsys):
    pytest.importorskip("ray")
    assert run_sweep("ray", "--executor=ray", "--ray", "address=127.0.0.1:1")[1] == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("--ray address=127.0.0.1:1")
