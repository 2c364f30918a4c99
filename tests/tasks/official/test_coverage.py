"""Every delivered file of rows is compared with a task, or named here with the reason."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[3]
NOT_COMPARED = {
    "SOURCES.tsv": "says where the others are from",
}
COMPARED_DATA = {
    "cfq/*": "tests/tasks/test_questions.py",
    "cogs/*.tsv": "tests/tasks/cogs/test_logical_form.py",
    "listops/*.tsv.gz": "tests/tasks/official/test_trees.py",
    "logical_inference/t*": "tests/tasks/official/test_trees.py",
    "mcwq/*": "tests/tasks/test_questions.py",
    "pcfg_set/*": "tests/tasks/pcfg/test_pcfg.py",
    "recogs/*": "tests/tasks/cogs/test_recogs.py",
    "recogs/variable_free/*": "tests/tasks/cogs/test_variable_free.py",
    "scan/*": "tests/tasks/test_scan.py",
    "slog/*": "tests/tasks/test_slog.py",
    "slog/varfree_LF/*": "tests/tasks/cogs/test_variable_free.py",
    "word_problem/*.csv": "tests/tasks/official/test_trees.py",
}
"""Official files -> the tests that compare every row of them."""
NOT_COMPARED_DATA = {
    "MANIFEST.tsv": "says what the others are",
    "*LICENSE*": "no rows",
    "cfq/NOTE": "no rows",
}
COMPARED_GOLDEN = {
    "ctl_*.tsv": "tests/tasks/test_table_lookup.py",
    "listops.tsv": "tests/tasks/official/test_trees.py",
    "scan_length_resplit_*.tsv": "tests/tasks/test_scan.py",
    "simple_arithmetic.tsv": "tests/tasks/test_arithmetic.py",
}
NOT_COMPARED_GOLDEN = {"data_meta.json": "says how the others were made"}


def files_under(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def unknown(folder, *tables):
    """Return the files that no pattern of the tables names, and the patterns that name none."""
    found = files_under(folder)
    patterns = [pattern for table in tables for pattern in table]
    left = {name for name in found if not any(fnmatch(name, pattern) for pattern in patterns)}
    idle = {p for p in patterns if not any(fnmatch(name, p) for name in found)}
    return left, idle


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


def test_every_official_file_is_compared(data_dir):
    assert unknown(data_dir, COMPARED_DATA, NOT_COMPARED_DATA) == (set(), set())


def test_every_golden_row_of_older_tasks_is_compared(golden_dir):
    found = unknown(golden_dir / "data", COMPARED_GOLDEN, NOT_COMPARED_GOLDEN)
    assert found == (set(), set())


def test_the_tests_that_compare_are_there():
    for module in {*COMPARED_DATA.values(), *COMPARED_GOLDEN.values()}:
        text = (ROOT / module).read_text(encoding="utf-8")
        folders = {p.split("/")[0] for p, m in COMPARED_DATA.items() if m == module}
        assert all(folder.removesuffix("_set") in text for folder in folders), module


def test_every_trap_of_the_documentation_names_a_test_that_is_there():
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    traps = text.partition("## Traps")[2].partition("\n## ")[0]
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", traps)
    assert len(named) >= 12
    for module, test in named:
        assert f"def {test}(" in (ROOT / module).read_text(encoding="utf-8"), (module, test)
