"""Tasks: data, vocabularies and scoring, for any model.

>>> task = create("scan", variant="length")
>>> [(name, len(rows)) for name, rows in task.splits().items()]
[('train', 16990), ('test', 3920)]
"""

from __future__ import annotations

from typing import Any

from tasks.arithmetic import Arithmetic
from tasks.base import options as _options
from tasks.base.options import OptionError
from tasks.base.provenance import DataDamaged, DataFile, DataMissing
from tasks.base.task import Example, Task, Vocabulary, select_rows
from tasks.cogs.like import CogsLike
from tasks.cogs.official import Cogs
from tasks.digits import Addition, Multiplication
from tasks.file import FileTask
from tasks.language.task import Language
from tasks.scan import Scan
from tasks.table_lookup import TableLookup

__all__ = [
    "TASKS",
    "DataDamaged",
    "DataFile",
    "DataMissing",
    "Example",
    "OptionError",
    "Task",
    "Vocabulary",
    "create",
    "select_rows",
    "task_class",
]

TASKS: dict[str, type[Task]] = {
    "scan": Scan,
    "cogs": Cogs,
    "cogs_like": CogsLike,
    "arithmetic": Arithmetic,
    "addition": Addition,
    "multiplication": Multiplication,
    "table_lookup": TableLookup,
    "file": FileTask,
    "language": Language,
}


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        OptionError: no task has that name; the message lists those there are.
    """
    if name not in TASKS:
        expected = f"expected one of {', '.join(TASKS)}{_options.nearest(name, TASKS)}"
        raise OptionError("task.name", name, expected)
    return TASKS[name]


def create(name: str, /, **options: Any) -> Task:
    """Return the task of a name with some of its options set.

    Raises:
        OptionError: an unknown task or option, or a value of the wrong type or out of range.
    """
    cls = task_class(name)
    _options.check_names(name, cls, options)
    return cls(**options)
