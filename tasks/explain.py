"""A task in a few lines with one worked example, and the menu of all tasks as a table."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from tasks import TASKS, task_class
from tasks.base import scoring
from tasks.base.console import WholeTable
from tasks.base.lengths import LengthTask
from tasks.base.metrics import Answers, Prediction, label_accuracy
from tasks.base.positions import PositionTask
from tasks.base.task import UNSCORED, Task

SAMPLE = 100_000
"""Rows of train that the rows of another split are looked for in, where they are short enough."""
SAMPLE_TOKENS = 2_000_000
WIDTH = 96
EXAMPLE_TOKENS = 24
"""Tokens that a worked example has, or the nearest there is."""
EXAMPLE_WIDTH = 400
"""Characters of a worked example that are shown."""


def menu() -> WholeTable:
    """Return every task: its family, its kind, what is hard about it, what it needs."""
    table = WholeTable(title="tasks; python -m tasks.show NAME explains one")
    for column in ("task", "family", "kind", "what is hard", "files"):
        table.add_column(column)
    classes = {name: task_class(name) for name in TASKS}
    families = list(dict.fromkeys(_family(cls) for cls in classes.values()))
    for name, cls in sorted(classes.items(), key=lambda entry: families.index(_family(entry[1]))):
        about = cls.about
        hard = about.hard if about else first_sentence(cls)
        files = about.fetch if about and about.fetch else "none"
        table.add_row(name, _family(cls), _kind(cls).replace("_", " "), hard, files)
    return table


def _family(cls: type[Task]) -> str:
    return cls.about.family if cls.about else "other"


def _kind(cls: type[Task]) -> str:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    if any(f.default is missing and f.default_factory is missing for f in fields):
        kind = getattr(cls, "kind", "")
        return kind if isinstance(kind, str) else "as its options say"
    return cls().kind


def first_sentence(cls: type) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")


def about_lines(cls: type[Task]) -> list[str]:
    """Return what a task is, what is hard, where it is from, what was published, what it needs."""
    lines = [f"{cls.name}: {first_sentence(cls)}"]
    if cls.about is not None:
        lines += [f"hard: {cls.about.hard}", f"from: {cls.about.source}"]
        lines += [f"published: {line}" for line in cls.about.published or ("none",)]
        lines.append(f"files: {cls.about.fetch or 'none'}")
    return [_filled(line) for line in lines]


def options_line(task: Task) -> str:
    """Return the options of a task and their values, as words of the command line give them."""
    values = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}  # type: ignore[arg-type]
    words = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    ]
    return _filled(f"options: {', '.join(words) or 'none'}")


def explain(task: PositionTask) -> Iterator[str]:
    """Yield what the rows of a task with labels of positions are, with a worked example."""
    forms = "causal" if task.is_causal else "bidirectional or causal"
    kind = task.kind.replace("_", " ")
    yield f"kind: {kind}, models are {forms}; data hash {task.data_hash()[:16]}"
    yield f"symbols: {_listed(task.symbols())}"
    yield f"labels: {_listed(task.labels())}"
    rows = task.split(task.in_distribution_split or task.train_split)[:64]
    example = min(rows, key=lambda row: abs(len(row.source) - EXAMPLE_TOKENS))
    nothing = "-" if "." in task.labels() else "."  # of a maze a dot is the floor
    yield f"example ({nothing} where nothing is scored):"
    yield f"  {_cut(' '.join(example.source))}"
    yield f"  {_cut(' '.join(nothing if word == UNSCORED else word for word in example.target))}"


def label_table(task: PositionTask) -> WholeTable:
    """Return the splits of a task with labels of positions: sizes, baselines, rows of train.

    ``row`` columns ask for every label of a row, ``label`` columns for single ones.
    """
    table = WholeTable(title="splits; a row is right if all its labels are")
    table.add_column("split")
    columns = ("row chance", "row majority", "row ceiling", "label chance", "label majority")
    for column in ("rows", task.difficulty_name, *columns, "also in train"):
        table.add_column(column, justify="right")
    for name in task.split_names():
        table.add_row(name, *_cells(task, name))
    return table


def _cells(task: PositionTask, name: str) -> list[str]:
    rows = task.split(name)
    if name == task.train_split:
        size = "endless" if getattr(rows, "is_endless", False) else f"{len(rows):,}"
        span = _span(*task.train_lengths) if isinstance(task, LengthTask) else "–"
        return [size, span, *["–"] * 6]
    examples = list(rows)
    levels = sorted({row.difficulty for row in examples})
    (label,) = task.majority_target()
    constant = [
        Prediction(tuple(UNSCORED if word == UNSCORED else label for word in row.target))
        for row in examples
    ]
    baselines = [
        scoring.chance(task, examples),
        scoring.majority(task, examples),
        scoring.ceiling(task, examples),
        1 / len(task.labels()),
        label_accuracy(Answers(examples, constant)),
    ]
    shared, among = shared_sources(task, name)
    return [
        f"{len(rows):,}",
        _span(levels[0], levels[-1]),
        *(f"{value:.2g}" for value in baselines),
        f"{shared:,} of {among}",
    ]


def _span(first: float, last: float) -> str:
    return f"{first:g}" if first == last else f"{first:g}–{last:g}"


def shared_sources(task: PositionTask, name: str) -> tuple[int, str]:
    """Count the rows of a split whose source train has, and say among how many they were sought."""
    train = task.split(task.train_split)
    count = min(len(train), SAMPLE, SAMPLE_TOKENS // task.max_source_length())
    if isinstance(task, LengthTask):
        made = train.arrays(np.arange(count)).source  # type: ignore[attr-defined]
    else:
        made = task.numbers(train[:count]).source
    sources = {row[row >= 0].tobytes() for row in made}
    numbers = task.numbers(list(task.split(name))).source.astype(made.dtype)
    shared = sum(row[row >= 0].tobytes() in sources for row in numbers)
    return shared, f"the {'first ' if count < len(train) else ''}{count:,}"


def _listed(words: Sequence[str]) -> str:
    shown = " ".join(words[:12]) + (" …" if len(words) > 12 else "")
    return f"{len(words)}: {shown}"


def _filled(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="    ", break_long_words=False)


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_WIDTH else f"{text[:EXAMPLE_WIDTH]} …"
