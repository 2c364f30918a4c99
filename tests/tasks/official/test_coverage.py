"""Every delivered file of rows is compared with a task, or named here with the reason."""

from __future__ import annotations

import ast
from pathlib import Path

NOT_COMPARED = {
    "SOURCES.tsv": "says where the others are from",
}


def test_every_file_is_compared(golden_dir):
    """A test module says in ``COMPARED`` which files it reads."""
    folder = golden_dir / "tasks"
    compared = {folder / name for name in NOT_COMPARED}
    for module in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPARED":
                for pattern in ast.literal_eval(node.value):
                    compared |= set(folder.glob(pattern))
    found = {path for path in folder.rglob("*") if path.is_file()}
    missing = sorted(path.relative_to(folder).as_posix() for path in found - compared)
    assert missing == []
