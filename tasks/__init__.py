"""Tasks: data, vocabularies and scoring, for any model.

>>> task = create("scan", variant="length")
>>> [(name, len(rows)) for name, rows in task.splits().items()]
[('train', 16990), ('test', 3920)]
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.base import options as _options
from tasks.base.data_files import DataDamaged, DataFile, DataMissing
from tasks.base.options import OptionError
from tasks.base.task import Example, ExampleTask, Task, Vocabulary, select_rows

if TYPE_CHECKING:
    from tasks.base.text import TextTask

__all__ = [
    "TASKS",
    "DataDamaged",
    "DataFile",
    "DataMissing",
    "Example",
    "ExampleTask",
    "LazyTask",
    "OptionError",
    "Task",
    "TextTask",
    "Vocabulary",
    "create",
    "select_rows",
    "task_class",
]


@dataclass(frozen=True)
class LazyTask:
    """Where the class of a task stands; imported when the task is first asked for.

    So a run imports its own task alone, and not the readers of text of another one.
    """

    module: str
    class_name: str

    def load(self) -> type[Task[Any]]:
        """Import the class."""
        return getattr(importlib.import_module(self.module), self.class_name)


TASKS: dict[str, type[Task[Any]] | LazyTask] = {
    "scan": LazyTask("tasks.scan", "Scan"),
    "cogs": LazyTask("tasks.cogs", "Cogs"),
    "cogs_like": LazyTask("tasks.cogs", "CogsLike"),
    "arithmetic": LazyTask("tasks.arithmetic", "Arithmetic"),
    "addition": LazyTask("tasks.digits", "Addition"),
    "multiplication": LazyTask("tasks.digits", "Multiplication"),
    "table_lookup": LazyTask("tasks.table_lookup", "TableLookup"),
    "ctl": LazyTask("tasks.ctl", "Ctl"),
    "ctl_plus": LazyTask("tasks.ctl_plus", "CtlPlus"),
    "listops": LazyTask("tasks.listops", "ListOps"),
    "logical_inference": LazyTask("tasks.logical_inference", "LogicalInference"),
    "logical_inference_like": LazyTask("tasks.logical_inference_like", "LogicalInferenceLike"),
    "sudoku": LazyTask("tasks.puzzles.sudoku", "Sudoku"),
    "maze": LazyTask("tasks.puzzles.maze", "Maze"),
    "sudoku_extreme": LazyTask("tasks.puzzles.official", "SudokuExtreme"),
    "maze_hard": LazyTask("tasks.puzzles.official", "MazeHard"),
    "gym": LazyTask("tasks.gym", "Gym"),
    "file": LazyTask("tasks.file", "FileTask"),
    "chomsky": LazyTask("tasks.chomsky", "Chomsky"),
    "dyck": LazyTask("tasks.dyck", "Dyck"),
    "flip_flop": LazyTask("tasks.flip_flop", "FlipFlop"),
    "word_problem": LazyTask("tasks.word_problem", "WordProblem"),
    "mqar": LazyTask("tasks.mqar", "MultiQueryRecall"),
    "p_hop": LazyTask("tasks.p_hop", "InductionHops"),
    "multi_hop": LazyTask("tasks.multi_hop", "MultiHop"),
    "reachability": LazyTask("tasks.reachability", "Reachability"),
    "path_star": LazyTask("tasks.path_star", "PathStar"),
    "edit_distance": LazyTask("tasks.edit_distance", "EditDistance"),
    "cellular": LazyTask("tasks.cellular", "Cellular"),
    "operand_addition": LazyTask("tasks.operand_addition", "OperandAddition"),
    "dag_arithmetic": LazyTask("tasks.dag_arithmetic", "DagArithmetic"),
    "modular_expression": LazyTask("tasks.modular_expression", "ModularExpression"),
    "looped": LazyTask("tasks.looped", "Looped"),
    "prefix_sums": LazyTask("tasks.prefix_sums", "PrefixSums"),
    "recogs": LazyTask("tasks.cogs", "Recogs"),
    "cogs_variant": LazyTask("tasks.cogs", "CogsVariant"),
    "slog": LazyTask("tasks.slog", "Slog"),
    "pcfg_set": LazyTask("tasks.pcfg", "PcfgSet"),
    "string_functions": LazyTask("tasks.pcfg", "StringFunctions"),
    "cfq": LazyTask("tasks.cfq", "Cfq"),
    "mcwq": LazyTask("tasks.mcwq", "Mcwq"),
    "language": LazyTask("tasks.language.task", "Language"),
}
"""Every task by the name that configs and commands give it; a class may stand here itself."""


def task_class(name: str) -> type[Task[Any]]:
    """Return the class of a task.

    Raises:
        OptionError: no task has that name; the message lists those there are.
    """
    if name not in TASKS:
        expected = f"expected one of {', '.join(TASKS)}{_options.nearest(name, TASKS)}"
        raise OptionError("task.name", name, expected)
    entry = TASKS[name]
    return entry.load() if isinstance(entry, LazyTask) else entry


def create(name: str, /, **options: Any) -> Task[Any]:
    """Return the task of a name with some of its options set.

    Raises:
        OptionError: an unknown task or option, or a value of the wrong type or out of range.
    """
    cls = task_class(name)
    _options.check_names(name, cls, options)
    return cls(**options)


if not TYPE_CHECKING:  # so that type checkers still know a name that is not there

    def __getattr__(name):
        if name != "TextTask":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module("tasks.base.text").TextTask  # with NumPy, for text alone
