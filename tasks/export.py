"""Write a split of a task as JSON lines, for use outside this project.

    python -m tasks.export scan variant=length --split test --output test.jsonl

Each line is an object with ``source``, ``target``, ``category`` and ``difficulty``. Tokens are
joined by spaces; where one is white space itself, as characters can be, that side of every row is a
list of tokens. A class label is text. The task ``file`` reads such a file back to the same rows,
with ``kind=classification`` where the target is a class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tasks.base.command_line import run
from tasks.base.storage import open_atomically
from tasks.base.task import Example, ExampleTask, Kind
from tasks.menu import parse_task_arguments, task_from_words, task_parser


def to_json_line(example: Example, lists: Collection[str] = ()) -> str:
    """Return a row as one JSON line, without its line end.

    Args:
        example: the row.
        lists: which of ``source`` and ``target`` is a list of tokens, rather than text.
    """
    difficulty = example.difficulty
    sides = {"source": example.source, "target": example.target}
    return json.dumps(
        {
            **{
                name: list(side) if name in lists else " ".join(side)
                for name, side in sides.items()
            },
            "category": example.category,
            "difficulty": int(difficulty) if float(difficulty).is_integer() else difficulty,
        },
        ensure_ascii=False,
    )


def sides_as_lists(rows: Iterable[Example], kind: Kind) -> list[str]:
    """Return the sides of some rows whose tokens cannot be told apart when spaces join them."""
    lists = set()
    for row in rows:
        if not _can_be_joined(row.source):
            lists.add("source")
        if kind != "classification" and not _can_be_joined(row.target):
            lists.add("target")
    return sorted(lists)


def _can_be_joined(tokens: Sequence[str]) -> bool:
    return " ".join(tokens).split() == list(tokens)


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines to a file that appears only when it is whole; return how many.

    Raises:
        OSError: the folder does not exist, is not writable or is full; nothing is left behind.
    """
    count = 0
    with open_atomically(path) as stream:
        for line in lines:
            stream.write(f"{line}\n".encode())
            count += 1
    return count


def main(words: Sequence[str] | None = None) -> None:
    """Export as the command line says.

    Raises:
        ValueError: an unknown task, option or split, or missing data.
        OSError: the output cannot be written.
    """
    parser = task_parser("export", "Write one split of a task as JSON lines.")
    parser.add_argument("--split", required=True, help="which split")
    parser.add_argument("--output", required=True, metavar="FILE", help="where to; - for stdout")
    arguments = parse_task_arguments(parser, words)
    task = task_from_words(arguments.task, arguments.options)
    if not isinstance(task, ExampleTask):
        raise ValueError(
            f"task {arguments.task!r}: has windows of tokens and no rows to export; its packed "
            "files are described by: python -m tasks.show language"
        )
    rows = task.split(arguments.split)
    if getattr(rows, "is_endless", False):
        raise ValueError(f"--split {arguments.split}: has no end; see the options of the task")
    lists = sides_as_lists(rows, task.kind)
    lines = (to_json_line(row, lists) for row in rows)
    if arguments.output == "-":
        sys.stdout.writelines(line + "\n" for line in lines)
        return
    path = Path(arguments.output)
    if path.is_dir():
        raise ValueError(f"--output={arguments.output}: is a folder, expected a file name")
    if not path.parent.is_dir():
        raise ValueError(f"--output={arguments.output}: no folder {path.parent}")
    count = write_lines(path, lines)
    print(f"{count} rows written to {path}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
