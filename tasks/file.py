r"""A task over the user's own files, in TSV or JSON lines.

TSV has no header and two or three columns, source, target and an optional category:

>>> parse_tsv_line("the cat sleeps\tsleep ( cat )\tmain clause")
{'source': 'the cat sleeps', 'target': 'sleep ( cat )', 'category': 'main clause'}

A file whose name ends in ``.jsonl`` has an object a line, as ``python -m tasks.export`` writes:

>>> parse_json_line('{"source": "2 + 3", "target": "5", "difficulty": 1}')
{'source': '2 + 3', 'target': '5', 'difficulty': 1}

In a config: ``task: {name: file, train: my.tsv, test: my_test.tsv, other: {hard: hard.jsonl}}``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tasks.base.options import OptionError, nearest, require
from tasks.base.task import SPECIAL_TOKENS, Example, ExampleTask

JSON_KEYS = ("source", "target", "category", "difficulty")


@dataclass(frozen=True, kw_only=True)
class FileTask(ExampleTask):
    """Your own examples, from TSV (source, target, category) or JSON lines."""

    name: ClassVar[str] = "file"
    difficulty_name: ClassVar[str] = "length"

    train: str
    """File of the training rows; only they decide the vocabularies."""
    dev: str | None = None
    """File of validation rows, by which weights may be selected."""
    test: str | None = None
    """File of test rows."""
    other: dict[str, str] = field(default_factory=dict)
    """Further test splits: name to file."""
    kind: Literal["sequence_to_sequence", "classification"] = "sequence_to_sequence"
    """Whether the target is a sequence of tokens or one class label."""
    tokenize: Literal["whitespace", "characters"] = "whitespace"
    """How text becomes tokens; a class label is never divided."""
    in_distribution: str | None = None
    """Split drawn like train, shown beside the others' scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ["train", *self._paths()]
        for name in self.other:
            if name in ("train", "dev", "test") or not name.isidentifier():
                raise OptionError(
                    f"task.other.{name}",
                    self.other[name],
                    "a split's name must be a word other than train, dev, test",
                )
        if self.in_distribution is not None:
            require(
                self,
                "in_distribution",
                self.in_distribution in names,
                f"one of {', '.join(names)}{nearest(self.in_distribution, names)}",
            )

    @property
    def in_distribution_split(self) -> str | None:
        """The split that the option ``in_distribution`` names."""
        return self.in_distribution

    @property
    def selection_splits(self) -> tuple[str, ...]:  # type: ignore[override]
        """``dev``, where there is one."""
        return ("dev",) if self.dev is not None else ()

    def _paths(self) -> dict[str, tuple[str, str]]:
        """Return for each split the option and the path that it names."""
        given = {name: (f"task.{name}", getattr(self, name)) for name in ("train", "dev", "test")}
        given |= {name: (f"task.other.{name}", path) for name, path in self.other.items()}
        return {name: entry for name, entry in given.items() if entry[1] is not None}

    def build_splits(self) -> dict[str, list[Example]]:
        """Read every file, train first.

        Raises:
            OptionError: no such file, or an empty one.
            ValueError: a binary file or a malformed row; the message names file and line.
        """
        return {
            split: [self._example(record, place) for place, record in read_records(path, option)]
            for split, (option, path) in self._paths().items()
        }

    def _example(self, record: dict[str, Any], place: str) -> Example:
        source = self._tokens(record["source"])
        is_label = self.kind == "classification"
        target = (record["target"].strip(),) if is_label else self._tokens(record["target"])
        for name, tokens in (("source", source), ("target", target)):
            if not tokens or tokens == ("",):
                raise ValueError(f"{place}: {name} is empty")
            special = [token for token in tokens if token in SPECIAL_TOKENS]
            if special:
                raise ValueError(f"{place}: {name} has {special[0]!r}, which is reserved")
        return Example(
            source=source,
            target=target,
            category=record.get("category", ""),
            difficulty=float(record.get("difficulty", len(source if is_label else target))),
        )

    def _tokens(self, text: str) -> tuple[str, ...]:
        return tuple(text) if self.tokenize == "characters" else tuple(text.split())


def read_records(name: str, option: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (``file:line``, record) for every row of a user's file.

    Raises:
        OptionError: no such file, or an empty one; it names ``option``, which gave the path.
        ValueError: a binary or malformed file; the message names file and line.
    """
    path = Path(name).expanduser()
    text = _read_text(option, name, path)
    parse: Callable[[str], dict[str, Any]] = parse_tsv_line
    if path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        parse = parse_json_line
    records = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        place = f"{name}:{number}"
        try:
            records.append((place, parse(line.removesuffix("\r"))))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return records


def _read_text(option: str, name: str, path: Path) -> str:
    data = _read_bytes(option, name, path)
    if b"\0" in data:
        raise ValueError(
            f"{name}:{_line_of(data, data.index(0))}: a binary file (zero byte), expected text"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}:{_line_of(data, error.start)}: byte 0x{data[error.start]:02x} is not UTF-8"
        ) from error


def _read_bytes(option: str, name: str, path: Path) -> bytes:
    if path.is_dir():
        raise OptionError(option, name, "is a folder, expected a TSV or JSONL file")
    if not path.exists():
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        raise OptionError(option, name, f"no such file{nearest(path.name, beside)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OptionError(option, name, str(error.strerror)) from error
    if not data.strip():
        raise OptionError(option, name, "empty file, expected at least one row")
    return data


def _line_of(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def parse_tsv_line(line: str) -> dict[str, Any]:
    """Read one row of a TSV file.

    Raises:
        ValueError: other than two or three columns.
    """
    columns = line.split("\t")
    if len(columns) not in (2, 3):
        shown = line if len(line) <= 60 else line[:57] + "..."
        raise ValueError(
            f"{shown!r}: {len(columns)} column{'s' if len(columns) > 1 else ''}, expected source "
            f"TAB target, or source TAB target TAB category"
        )
    return dict(zip(JSON_KEYS, columns, strict=False))


def parse_json_line(line: str) -> dict[str, Any]:
    """Read one row of a JSON lines file.

    Raises:
        ValueError: not an object, a missing, unknown or repeated key, or a value of another type.
    """
    try:
        record = json.loads(line, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: {error.msg}, expected a JSON object") from error
    if not isinstance(record, dict):
        raise ValueError(f"{line[:60]!r}: expected a JSON object with source and target")
    for key, value in record.items():
        if key not in JSON_KEYS:
            raise ValueError(
                f"{key!r}: unknown key; expected {', '.join(JSON_KEYS)}{nearest(key, JSON_KEYS)}"
            )
        if key == "difficulty":
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                raise ValueError(f"difficulty={value!r}: expected a number")
        elif not isinstance(value, str):
            raise ValueError(f"{key}={value!r}: expected text")
    for key in ("source", "target"):
        if key not in record:
            raise ValueError(f"no {key!r}: expected source and target")
    return record


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"{key!r}: given twice")
        record[key] = value
    return record
