"""What a run takes of a Ray cluster; tests/cluster has sweeps on a real one."""

from pathlib import Path

import pytest

from runners.sweeping.cluster_options import RayOptions
from runners.sweeping.executor import Job
from runners.sweeping.ray_cluster import RayExecutor


@pytest.mark.parametrize(
    ("options", "per_gpu", "uses_gpu", "cpus", "gpus"),
    [
        (RayOptions(), 1, False, 2, 0),
        (RayOptions(), 1, True, 2, 1),
        (RayOptions(), 4, True, 2, 0.25),
        (RayOptions(), 4, False, 2, 0),
        (RayOptions(gpus=0.5, cpus=3), 4, True, 3, 0.5),
    ],
)
def test_a_run_takes_its_threads_and_a_part_of_a_gpu(options, per_gpu, uses_gpu, cpus, gpus):
    executor = RayExecutor(options, per_gpu=per_gpu)
    wanted = executor.resources(Job(Path(), 2, uses_gpu=uses_gpu))
    assert (wanted["num_cpus"], wanted["num_gpus"]) == (cpus, gpus)
    assert "memory" not in wanted


def test_memory_is_given_in_bytes():
    wanted = RayExecutor(RayOptions(memory=1.5)).resources(Job(Path(), 1))
    assert wanted["memory"] == 1.5 * 2**30
