"""Data folders for benchmarks whose files the tests write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.base.storage import sha256_of
from tasks.zero_shot import ZERO_SHOT


@pytest.fixture
def put(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """Write files of a benchmark into a data folder, as if they were the published ones."""
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))

    def write(name: str, contents: dict[str, str]) -> None:
        files = []
        known = {file.path: file for file in ZERO_SHOT[name].files}
        for path, text in contents.items():
            goal = tmp_path / "data" / path
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.write_bytes(text.encode())
            file = known[path]
            files.append(
                dataclasses.replace(
                    file,
                    sha256=None if file.sha256 is None else sha256_of(text.encode()),
                    rows=None if file.rows is None else text.count("\n"),
                )
            )
        monkeypatch.setattr(type(ZERO_SHOT[name]), "files", tuple(files))

    return write
