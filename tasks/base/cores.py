"""How many processes are worth starting here."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the number of cores that this process may use: those that it is bound to, if any."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
