"""What makes two runs the same run: a hash of everything that changes the result.

Covered: the task with the hash of its data, the model, ``train``, ``evaluate`` and ``select``, all
with defaults filled in, so that writing a default out changes nothing and changing a default in the
code does. Not covered: the seed (a directory of its own below the hash), names (that of the
architecture, too, whose every option is covered), paths, what only decides how often and where is
logged and saved, and over how many processes a batch is spread and
how: a run may go on with more or fewer, and is then the same within rounding.

``train.device`` is covered as written: ``auto`` is one identity on every machine, so that a sweep
planned on a login node finds its directories on the compute nodes, while ``cpu`` and ``cuda`` asked
for by name are two, since their last bits differ. ``train.num_threads`` is covered for the same
reason.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any

from runners.config.schema import RunConfig

NOT_IDENTITY: dict[str, tuple[str, ...]] = {
    "": ("seed",),
    "model": ("architecture",),
    "train": ("log_interval", "checkpoint_interval", "parallel", "tensorboard"),
}
"""Keys left out of the hash, by section."""


def identity(config: RunConfig, data_hash: str) -> dict[str, Any]:
    """Return what the hash is taken over, as plain data."""
    data = config.to_dict()
    for section, keys in NOT_IDENTITY.items():
        for key in keys:
            del (data[section] if section else data)[key]
    return data | {"data_hash": data_hash}


def config_hash(config: RunConfig, data_hash: str) -> str:
    """Return the 8 hexadecimal digits that name a run's directory.

    Args:
        config: The resolved run.
        data_hash: ``Task.data_hash()``.
    """
    text = json.dumps(identity(config, data_hash), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def difference(before: str, after: str) -> str:
    """Return the lines in which two configs differ, such as ``-seed: 1; +seed: 2``."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "; ".join(
        line[0] + line[1:].strip() for line in lines if not line.startswith(("---", "+++", "@@"))
    )
