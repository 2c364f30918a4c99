"""Real clusters on this machine; asked for by MOEUT_CLUSTER=1, as ``nox -s cluster`` does."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from runners import sweep

SCRIPT = Path(__file__).parent / "slurm.sh"
TINY = """\
name: tiny
base:
  task: {name: table_lookup, bits: 2, train_rows: 60, test_rows: 20, valid_rows: 0}
  model: {d_model: 16, attention: {num_heads: 2}}
  train: {steps: 4, batch_size: 8, warmup_steps: 0, checkpoint_interval: 100}
variants:
  transformer: {model.architecture: transformer, model.depth.group: 1}
  universal: {model.architecture: universal, model.depth.repeats: 2}
seeds: 6
"""


@pytest.fixture(scope="session")
def wait_for():
    """Return a function that asks again and again, until it gets a true value."""

    def wait(condition, *, seconds=300.0, what="it"):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.3)
        raise AssertionError(f"{what} has not come within {seconds:g} s")

    return wait


@pytest.fixture(autouse=True, scope="session")
def _asked_for():
    if not os.environ.get("MOEUT_CLUSTER"):
        pytest.skip("takes minutes and starts daemons: MOEUT_CLUSTER=1, or nox -s cluster")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Start a cluster of the nodes n1 and n2 and return its folder."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)} (apt: slurm-wlm munge)")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True, stdin=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True)
    del os.environ["SLURM_CONF"]


@pytest.fixture
def run_sweep(tmp_path):
    """Return a function that executes a sweep of tiny runs; it returns its folder and status."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)

    def run(place, *arguments):
        runs = tmp_path / place
        status = sweep.main([str(file), f"--runs-dir={runs}", "--no-figures", *arguments])
        return runs / "tiny", status

    return run
