"""Options of clusters: three places, later over earlier, and one line for what is wrong."""

import pytest

from runners.config import yaml_nodes
from runners.config.yaml_nodes import ConfigError
from runners.sweeping.cluster_options import RayOptions, SlurmOptions, read_options


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that writes the machine file of this user."""

    def write(text):
        path = tmp_path / "machine.yaml"
        path.write_text(text)
        monkeypatch.setenv("MOEUT_MACHINE", str(path))

    write("cluster: {}\n")
    return write


def test_the_command_line_is_over_the_sweep_and_that_over_the_machine(machine):
    machine("cluster: {slurm: {partition: a, account: x, time: 30, sbatch: {hint: nomultithread}}}")
    sweep = yaml_nodes.parse("{slurm: {partition: b, time: 1-00:00:00}, ray: {retries: 0}}", "f")
    found = read_options(SlurmOptions, ["partition=c", "sbatch.comment=hello"], sweep=sweep)
    assert (found.partition, found.account, found.time) == ("c", "x", "1-00:00:00")
    assert found.sbatch == {"hint": "nomultithread", "comment": "hello"}
    assert read_options(RayOptions, sweep=sweep).retries == 0
    assert read_options(SlurmOptions) == SlurmOptions(
        partition="a", account="x", time=30, sbatch={"hint": "nomultithread"}
    )


@pytest.mark.parametrize(
    ("file", "pair", "message"),
    [
        ("{}", "partitoin=a", "slurm.partitoin='a': .*did you mean 'slurm.partition'"),
        ("{}", "nodes=0", "command line: slurm.nodes=0: must be at least 1"),
        ("{}", "time=[1]", r"slurm.time=\[1\]: expected a"),
        ("cluster: {slrum: {}}", "nodes=1", "machine.yaml:1: cluster.slrum=.*'cluster.slurm'"),
        ("slurm: {}", "nodes=1", "machine.yaml:1: slurm=.*: .*cluster"),
    ],
)
def test_what_is_wrong_is_one_line(machine, file, pair, message):
    machine(file if file != "{}" else "cluster: {}")
    with pytest.raises(ConfigError, match=message):
        read_options(SlurmOptions, [pair])
