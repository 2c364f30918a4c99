"""Print a task: examples, sizes, lengths, vocabularies, ceilings and overlaps.

    python -m tasks.show                        the menu
    python -m tasks.show scan variant=length
    python -m tasks.show word_problem group=A5
    python -m tasks.show language corpus=files files=book.txt documents=paragraphs

A task over text has its tokenizer shown, how much text its splits hold, and the first windows of
each as text. A corpus that is not packed yet is packed first.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console

from tasks.base import scoring
from tasks.base.command_line import run
from tasks.base.console import WholeTable, make_console, say
from tasks.base.options import exact_text
from tasks.base.positions import PositionTask
from tasks.base.printable import printable
from tasks.base.task import Example, ExampleTask, Task, select_rows
from tasks.base.text import TextTask
from tasks.explain import about_lines, explain, label_table, menu, options_line
from tasks.menu import parse_task_arguments, task_from_words, task_parser

WINDOW_CHARACTERS = 400
"""Characters of a window that are shown."""


def unseen_tokens(task: ExampleTask, split: str) -> tuple[list[str], list[str]]:
    """Return the source and the target tokens of a split that training never shows, sorted."""
    source, target = task.vocabularies()
    rows = task.split(split)
    return (
        sorted({token for row in rows for token in row.source if token not in source}),
        sorted({token for row in rows for token in row.target if token not in target}),
    )


def overlap(task: ExampleTask, split: str) -> dict[str, int]:
    """Count the rows of a split that are in train, too.

    Returns:
        ``same_source``: rows whose source is in train; ``same_row``: rows that are there whole.
    """
    train = task.splits()[task.train_split]
    sources = {row.source for row in train}
    pairs = {(row.source, row.target) for row in train}
    rows = task.split(split)
    return {
        "same_source": sum(row.source in sources for row in rows),
        "same_row": sum((row.source, row.target) in pairs for row in rows),
    }


def split_table(task: ExampleTask) -> WholeTable:
    """Return sizes and lengths of every split."""
    table = WholeTable(title="splits: rows, tokens (least–most, mean)")
    table.add_column("split")
    for column in ("rows", "distinct", "source", "target", task.difficulty_name):
        table.add_column(column, justify="right")
    for name, rows in task.splits().items():
        table.add_row(
            name,
            f"{len(rows):,}",
            f"{len({row.source for row in rows}):,}",
            _spread([len(row.source) for row in rows]),
            _spread([len(row.target) for row in rows]),
            _spread([row.difficulty for row in rows]),
        )
    return table


def comparison_table(task: ExampleTask) -> WholeTable:
    """Return how every other split relates to train: overlap, unseen tokens, ceiling, baselines."""
    title = "beside train: rows that train has too, tokens it never shows, scores in %"
    table = WholeTable(title=title)
    table.add_column("split")
    for column in (
        "shared sources",
        "shared rows",
        "unseen in source",
        "unseen in target",
        "ceiling",
        "chance",
        "majority",
    ):
        table.add_column(column, justify="right")
    for name, rows in task.splits().items():
        if name == task.train_split:
            continue
        shared = overlap(task, name)
        source, target = unseen_tokens(task, name)
        table.add_row(
            name,
            f"{shared['same_source']:,}",
            f"{shared['same_row']:,}",
            _listed(source),
            _listed(target),
            f"{100 * scoring.ceiling(task, rows):.2f}",
            f"{100 * scoring.chance(task, rows):.2f}",
            f"{100 * scoring.majority(task, rows):.2f}",
        )
    return table


def count_table(
    task: ExampleTask, title: str, counts: dict[str, collections.Counter[str]]
) -> WholeTable:
    """Return how often each label occurs in each split, most frequent in train first."""
    table = WholeTable(title=title)
    table.add_column(title.split()[0])
    for name in counts:
        table.add_column(name, justify="right")
    labels = {label for counter in counts.values() for label in counter}
    order = sorted(labels, key=lambda label: (-counts[task.train_split][label], label))
    for label in order:
        cells = []
        for counter in counts.values():
            share = f" ({100 * counter[label] / counter.total():.1f} %)" if counter[label] else ""
            cells.append(f"{counter[label]:,}{share}")
        table.add_row(label, *cells)
    return table


def show(task: Task, console: Console, num_examples: int = 3) -> None:
    """Print a task on a console: its splits, and the first rows or windows of each.

    Raises:
        DataMissing, DataDamaged: the data cannot be read; what the task is has been printed.
    """
    for line in (*about_lines(type(task)), options_line(task)):
        say(console, line)
    task.splits()
    if isinstance(task, PositionTask):
        for line in explain(task):
            say(console, line)
        console.print(label_table(task))
        return
    if isinstance(task, TextTask):
        show_text(task, console, num_examples)
    elif isinstance(task, ExampleTask):
        show_examples(task, console, num_examples)


def show_facts(task: Task, console: Console) -> None:
    """Print the facts of a task, one a line."""
    for what, value in task.facts().items():
        say(console, f"{what}: {value}")


def show_examples(task: ExampleTask, console: Console, num_examples: int) -> None:
    """Print the facts of a task, its splits side by side, and a few rows of each."""
    splits = task.splits()
    show_facts(task, console)
    for example in examples_of(splits[task.train_split], min(num_examples, 1)):
        say(console, f"example: {printable(' '.join(example.source))}")
        say(console, f"  -> {printable(' '.join(example.target))}")
    console.print(split_table(task))
    if len(splits) > 1:
        console.print(comparison_table(task))
    if task.kind == "classification":
        labels = {n: collections.Counter(r.target[0] for r in rows) for n, rows in splits.items()}
        console.print(count_table(task, "class balance", labels))
    categories = {n: collections.Counter(r.category for r in rows) for n, rows in splits.items()}
    if any(set(counter) != {""} for counter in categories.values()):
        console.print(count_table(task, "category counts", categories))
    for name, rows in splits.items():
        say(console, name, style="bold")
        for row in examples_of(rows, num_examples):
            note = f"  ({row.category})" if row.category else ""
            say(console, f"  {printable(' '.join(row.source))}")
            say(console, f"    -> {printable(' '.join(row.target) + note)}")


def show_text(task: TextTask, console: Console, num_windows: int) -> None:
    """Print the facts of a task over text, its splits, and the first windows of each as text."""
    show_facts(task, console)
    console.print(text_table(task))
    if not num_windows:
        return
    tokenizer = task.load_tokenizer()
    for name, split in task.splits().items():
        size = f"{len(split):,} windows of {task.context_length:,} tokens"
        say(console, f"{name}: {size}, the first as text:", style="bold")
        for window in split.windows(np.arange(min(num_windows, len(split)))):
            text = tokenizer.decode(window.tolist())
            say(console, f"  {text[:WINDOW_CHARACTERS]!r}")


def text_table(task: TextTask) -> WholeTable:
    """Return how much text each split holds."""
    table = WholeTable(
        title="splits (duplicates: documents dropped)", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("split")
    for column in ("documents", "duplicates", "tokens", "bytes", "bytes/token"):
        table.add_column(column, justify="right")
    for name, split in task.splits().items():
        table.add_row(
            name,
            f"{split.num_documents:,}",
            f"{split.num_duplicates:,}",
            f"{split.num_tokens:,}",
            f"{split.num_bytes:,}",
            f"{split.num_bytes / split.num_tokens:.3f}" if split.num_tokens else "–",
        )
    return table


def examples_of(rows: Sequence[Example], count: int) -> list[Example]:
    """Return a few rows of a split, chosen by hash, the shortest first."""
    plain = [Example(row.source, row.target, "", row.difficulty) for row in rows]
    chosen = select_rows(plain, count) if count else []
    shown = [rows[plain.index(row)] for row in chosen]
    return sorted(shown, key=lambda row: (len(row.source) + len(row.target), row.source))


def _spread(values: Sequence[float]) -> str:
    middle = statistics.mean(values)
    return f"{exact_text(min(values))}–{exact_text(max(values))}, {middle:.1f}"


def _listed(tokens: Sequence[str]) -> str:
    if not tokens:
        return "0"
    shown = ", ".join(tokens[:4]) + (", …" if len(tokens) > 4 else "")
    return f"{len(tokens)}: {shown}"


def main(words: Sequence[str] | None = None) -> None:
    """Show a task as the command line says.

    Raises:
        ValueError: an unknown task or option, or missing data.
    """
    parser = task_parser("show", __doc__ or "", needs_task=False)
    parser.add_argument(
        "--examples",
        type=int,
        default=3,
        metavar="N",
        help="rows, or windows, of each split; default 3",
    )
    arguments = parse_task_arguments(parser, words)
    if arguments.task is None:
        make_console().print(menu())
        return
    if arguments.examples < 0:
        raise ValueError(f"--examples={arguments.examples}: must be at least 0")
    show(task_from_words(arguments.task, arguments.options), make_console(), arguments.examples)


if __name__ == "__main__":
    run(main)
