r"""A task over the user's own files, in TSV or JSON lines.

TSV has no header and two or three columns, source, target and an optional category:

>>> parse_tsv_line("the cat sleeps\tsleep ( cat )\tmain clause")
{'source': 'the cat sleeps', 'target': 'sleep ( cat )', 'category': 'main clause'}

A file whose name ends in ``.jsonl`` has an object a line, as ``python -m tasks.export`` writes:

>>> parse_json_line('{"source": "2 + 3", "target": "5", "difficulty": 1}')
{'source': '2 + 3', 'target': '5', 'difficulty': 1}

Further keys are kept as the row's metadata, which no model sees. A list stands for tokens that are
divided already, which white space as a token needs; ``tokenize`` does not touch them:

>>> parse_json_line('{"source": ["a", " ", "b"], "target": "7", "page": 3}')
{'source': ['a', ' ', 'b'], 'target': '7', 'metadata': {'page': 3}}

Blank lines at the end of a file are no rows.

In a config: ``task: {name: file, train: my.tsv, test: my_test.tsv, other: {hard: hard.jsonl}}``.
"""

from __future__ import annotations

import codecs
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tasks.base.about import About
from tasks.base.data_files import expand_user
from tasks.base.lines import JSON_SUFFIXES, lines_of, parse_json_object, shortened, shown
from tasks.base.options import LOCATION, OptionError, nearest, require
from tasks.base.task import SPECIAL_TOKENS, Example, ExampleTask

KEYS = ("source", "target", "category", "difficulty")
"""Keys of JSON lines that are read; the first three are the columns of TSV."""
HEADER_WORDS = {
    "source", "src", "input", "text", "sentence", "question", "prompt", "command", "premise",
    "target", "tgt", "output", "label", "class", "answer", "response", "actions",
    "category", "type", "kind", "id",
}  # fmt: skip
"""Names of columns, of which a first row that is a header consists."""


@dataclass(frozen=True, kw_only=True)
class FileTask(ExampleTask):
    """Your own examples, from TSV (source, target, category) or JSON lines."""

    name: ClassVar[str] = "file"
    about: ClassVar[About] = About(
        family="your own",
        hard="what you bring",
        source="a file of yours",
    )
    difficulty_name: ClassVar[str] = "length"

    train: str = field(metadata=LOCATION)
    """File of the training rows; only they decide the vocabularies."""
    dev: str | None = field(default=None, metadata=LOCATION)
    """File of validation rows, by which weights may be selected."""
    test: str | None = field(default=None, metadata=LOCATION)
    """File of test rows."""
    other: dict[str, str] = field(default_factory=dict, metadata=LOCATION)
    """Further test splits: name to file."""
    kind: Literal["sequence_to_sequence", "classification"] = "sequence_to_sequence"
    """Whether the target is a sequence of tokens or one class label."""
    tokenize: Literal["whitespace", "characters"] = "whitespace"
    """How text becomes tokens; a class label is never divided, nor is a list of JSON lines."""
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
        target = (
            self._label(record["target"], place) if is_label else self._tokens(record["target"])
        )
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
            metadata=record.get("metadata", {}),
        )

    def _label(self, target: str | list[str], place: str) -> tuple[str, ...]:
        if isinstance(target, list):
            raise ValueError(f"{place}: target is a list, expected a class label as text")
        return (target.strip(),)

    def _tokens(self, text: str | list[str]) -> tuple[str, ...]:
        if isinstance(text, list):
            return tuple(text)
        return tuple(text) if self.tokenize == "characters" else tuple(text.split())


def read_records(name: str, option: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (``file:line``, record) for every row of a user's file.

    Raises:
        OptionError: no such file, or an empty one; it names ``option``, which gave the path.
        ValueError: a binary or malformed file; the message names file and line.
    """
    path = expand_user(name, option)
    lines = lines_of(_read_bytes(option, name, path), name)
    while lines and not lines[-1][1].strip(" \r"):
        lines.pop()
    is_json = path.suffix.lower() in JSON_SUFFIXES
    parse = parse_json_line if is_json else parse_tsv_line
    records = []
    for number, line in lines:
        place = f"{name}:{number}"
        try:
            record = parse(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if number == 1 and not is_json and _is_header(line):
            raise ValueError(
                f"{place}: {shortened(line)!r}: looks like a header, and TSV has none here; remove "
                "the line, or move it further down if it is a row"
            )
        records.append((place, record))
    return records


def _is_header(line: str) -> bool:
    """Return whether the columns of a row of TSV are names of columns, each another."""
    names = [column.strip(" \"'#").lower() for column in line.split("\t")]
    return HEADER_WORDS.issuperset(names) and len(set(names)) == len(names)


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
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise OptionError(option, name, "empty file, expected at least one row")
    return data


def parse_tsv_line(line: str) -> dict[str, Any]:
    """Read one row of a TSV file.

    Raises:
        ValueError: other than two or three columns.
    """
    columns = line.split("\t")
    if len(columns) not in (2, 3):
        raise ValueError(
            f"{shortened(line)!r}: {len(columns)} column{'s' if len(columns) > 1 else ''}, "
            "expected source TAB target, or source TAB target TAB category"
        )
    return dict(zip(KEYS, columns, strict=False))


def parse_json_line(line: str) -> dict[str, Any]:
    """Read one row of a JSON lines file; keys that no model sees are gathered under ``metadata``.

    Raises:
        ValueError: not an object; a missing or repeated key, or one that looks like a misspelt one;
            a value of another type, or text that no file can hold.
    """
    given = parse_json_object(line)
    record = {key: given[key] for key in given if key in KEYS}
    for key, value in record.items():
        _check_value(key, value)
    missing = [key for key in KEYS if key not in given]
    for key in given:
        if key not in KEYS and (hint := nearest(key, missing)):
            raise ValueError(f"{key!r}: unknown key; {', '.join(KEYS)} are read{hint}")
    for key in ("source", "target"):
        if key not in record:
            others = f"; it has {', '.join(map(repr, given)) or 'no key'}"
            raise ValueError(f"no {key!r}: expected source and target{shortened(others)}")
    metadata = {key: value for key, value in given.items() if key not in KEYS}
    return record | ({"metadata": metadata} if metadata else {})


def _check_value(key: str, value: Any) -> None:
    """Raise ValueError if the value of a key that is read has another type."""
    if key == "difficulty":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise ValueError(f"difficulty={shown(value)}: expected a number")
        return
    if isinstance(value, list) and key != "category":
        for token in value:
            is_token = isinstance(token, str) and (len(token) == 1 or token.split() == [token])
            if not is_token:
                raise ValueError(
                    f"{key} has {shown(token)}: expected tokens, each one character or "
                    "text without white space"
                )
    elif not isinstance(value, str):
        expected = "text" if key == "category" else "text, or a list of tokens"
        raise ValueError(f"{key}={shown(value)}: expected {expected}")
