"""Rows that published generators gave, read from the folder with golden numbers."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest


def read(path: Path) -> list[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="session")
def rows_of(golden_dir):
    """Return a function from a pattern to the files' names, without their ending, and rows."""

    def rows(pattern):
        found = sorted((golden_dir / "tasks").glob(pattern))
        assert found, pattern
        return {path.name.partition(".")[0]: read(path) for path in found}

    return rows
