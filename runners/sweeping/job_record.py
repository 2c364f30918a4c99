"""Which job of a cluster a run was handed to: ``job.json`` in the run's directory.

It is a hint, never the truth: the cluster says whether the job is still there, and the run's own
files say what became of it. A record that lies in another place than it names was copied or moved
with its run, and means nothing there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.base.storage import write_json

FILE = "job.json"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job of a cluster."""

    engine: str
    job: str
    """Its id, as the engine's own commands take it: 12_3."""
    directory: str
    """Absolute path of the run's directory when it was handed over."""

    def write(self) -> None:
        """Write the record into the run's directory."""
        write_json(Path(self.directory) / FILE, asdict(self), durable=False)


def read_job(directory: Path, engine: str) -> str | None:
    """Return the id of the job that a run was handed to, or None if none is known here."""
    try:
        record = JobRecord(**json.loads((directory / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if record.engine != engine or Path(record.directory) != directory.resolve():
        return None
    return record.job
