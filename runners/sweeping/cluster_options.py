"""What a cluster is asked for: options of Slurm and of Ray, which are no part of what a run is.

They come from three places, later over earlier: ``cluster:`` in the user's own machine file
(``MOEUT_MACHINE``, else ``~/.config/moeut/machine.yaml``), ``cluster:`` in the sweep's file, and
``--slurm KEY=VALUE`` or ``--ray KEY=VALUE`` on the command line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from moeut.options import OptionError
from runners.config import yaml_nodes
from runners.config.run_file import build, unknown_key
from runners.config.yaml_nodes import COMMAND_LINE, Node, merge, override, parse_override

MACHINE_VARIABLE = "MOEUT_MACHINE"
MACHINE_FILE = "~/.config/moeut/machine.yaml"


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What each job of a sweep asks Slurm for; None leaves it to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    time: int | str = 240
    """Limit of a job: minutes, or as Slurm writes it ("1-12:00:00"). A longer run is requeued."""
    memory: str | None = None
    """Of a node, such as 16G."""
    cpus: int | None = None
    """Cores of a node's part of a run; default: the threads of its processes."""
    gpus: int | None = None
    """GPUs of a node; default: one for runs on device cuda."""
    nodes: int = 1
    """Nodes of a run."""
    processes: int | None = None
    """Ranks of a run on each node, started by torchrun; default: one a GPU."""
    parallel: int | None = None
    """Jobs of an array at a time."""
    save_seconds: int = 120
    """Time before the limit at which a run is told to save (Slurm's own clock has minutes)."""
    requeue: bool = True
    """Whether a run that has saved at its limit asks for its next turn by itself."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the run, such as module load cuda."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Any other options of sbatch: name → value."""

    def __post_init__(self) -> None:
        for name in ("cpus", "nodes", "processes", "parallel", "save_seconds"):
            _check_least(self, name, 1)
        _check_least(self, "gpus", 0)
        if isinstance(self.time, int):
            _check_least(self, "time", 1)

    @property
    def ranks_per_node(self) -> int:
        """Processes of a run on each node."""
        return self.processes or max(1, self.gpus or 1)


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where the Ray cluster is, and what each run takes of it."""

    address: str = "auto"
    """Of the cluster: auto finds the one of this machine or of RAY_ADDRESS."""
    cpus: int | None = None
    """Cores of a run; default: its threads."""
    gpus: float | None = None
    """GPUs of a run, a fraction for several on one; default: 1 / --workers-per-gpu on cuda."""
    memory: float | None = None
    """GiB of a run."""
    retries: int = 3
    """Times that a run whose node has died is taken up by another one."""

    def __post_init__(self) -> None:
        _check_least(self, "cpus", 1)
        _check_least(self, "gpus", 0)
        _check_least(self, "memory", 0)
        _check_least(self, "retries", 0)


Options = TypeVar("Options", SlurmOptions, RayOptions)
ENGINES: dict[str, type[SlurmOptions] | type[RayOptions]] = {
    "slurm": SlurmOptions,
    "ray": RayOptions,
}


def _check_least(options: object, name: str, least: int) -> None:
    value = getattr(options, name)
    if value is not None and value < least:
        raise OptionError(name, value, f"must be at least {least}")


def read_options(
    cls: type[Options], pairs: Sequence[str] = (), *, sweep: Node | None = None
) -> Options:
    """Return the options of one engine from the machine file, the sweep's file and ``pairs``.

    Args:
        cls: ``SlurmOptions`` or ``RayOptions``.
        pairs: ``partition=gpu`` and so on, of the command line.
        sweep: ``cluster:`` of the sweep's file, if it has one.

    Raises:
        ConfigError: an unknown engine or option, or a value that it does not take.
    """
    engine = next(name for name, options in ENGINES.items() if options is cls)
    node = Node({}, COMMAND_LINE)
    for section in (_machine_section(), sweep):
        if section is not None:
            node = merge(node, _engine_section(section, engine))
    for pair in pairs:
        key, value = parse_override(pair)
        node = override(node, key, value)
    return build(cls, node, engine, owner=f"--{engine}")


def _machine_section() -> Node | None:
    given = os.environ.get(MACHINE_VARIABLE)
    path = Path(given or MACHINE_FILE).expanduser()
    if not given and not path.is_file():
        return None
    root = yaml_nodes.read(path)
    for key, child in root.value.items():
        if key != "cluster":
            raise unknown_key(child, key, ("cluster",), "a machine file takes")
    return root.value.get("cluster")


def _engine_section(section: Node, engine: str) -> Node:
    if not isinstance(section.value, dict):
        raise yaml_nodes.ConfigError(
            "expected a mapping of slurm and ray to their options",
            path="cluster",
            value=section.plain(),
            place=section.place,
        )
    for key, child in section.value.items():
        if key not in ENGINES:
            raise unknown_key(child, f"cluster.{key}", ENGINES, "clusters are")
    return section.value.get(engine, Node({}, section.place))
