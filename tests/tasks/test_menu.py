"""The menu of tasks: what every entry of it keeps, and the help that is made of it."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

import tasks
from tasks import export
from tasks.base import options


def test_every_entry_of_the_menu_leads_to_the_task_of_its_name():
    assert {name: tasks.task_class(name).name for name in tasks.TASKS} == {
        n: n for n in tasks.TASKS
    }


def test_a_task_is_imported_without_the_others():
    code = "import sys, tasks; tasks.create('table_lookup'); print(*sorted(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    imported = {name for name in process.stdout.split() if name.startswith("tasks.")}
    assert imported - {name for name in imported if name.startswith("tasks.base")} == {
        "tasks.table_lookup"
    }


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_docstring_examples_of_every_task_are_true(name):
    module = importlib.import_module(tasks.task_class(name).__module__)
    result = doctest.testmod(module)
    assert result.attempted > 0, f"{module.__name__} has no worked example"
    assert result.failed == 0


def test_docstring_example_of_the_package_is_true():
    assert doctest.testmod(tasks).failed == 0


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if name != "toy"])
def test_every_task_documents_its_options(name):
    for option in options.describe(tasks.task_class(name)).values():
        assert option.doc, f"{name}.{option.name} has no docstring"


def test_help_lists_every_task_with_its_options(capsys):
    with pytest.raises(SystemExit) as end:
        export.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in tasks.TASKS:
        assert f"\n{name}: " in text
    assert "cutoff: a whole number; default 22" in text
    assert "train: text; required" in text
