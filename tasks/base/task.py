"""The base of all tasks: options, named splits, and the examples and vocabularies of most."""

from __future__ import annotations

import collections
import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from tasks.base import options
from tasks.base.about import About

Kind = Literal[
    "sequence_to_sequence",
    "classification",
    "language_modelling",
    "position_labelling",
    "causal_labelling",
]

LABELLINGS = ("position_labelling", "causal_labelling")
"""Kinds with a label at every position; causal where later tokens would give a label away."""

UNSCORED = "<unscored>"
"""Stands in a target of labels where a position has none: it counts in no loss and no score."""

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a split."""

    source: tuple[str, ...]
    """Input tokens."""
    target: tuple[str, ...]
    """Output tokens; for classification the one class label; for labels of positions one for each
    source token, ``UNSCORED`` where there is none."""
    category: str = ""
    """Kind of row, for tables per category; empty where a task has none."""
    difficulty: float = 0.0
    """Number that results are plotted against: depth, length, digits."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Vocabulary:
    """Tokens of one side, numbered: the special tokens first, then the others in sorted order.

    Ids: 0 padding, 1 begin, 2 end, 3 unknown.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens: tuple[str, ...] = SPECIAL_TOKENS + tuple(
            sorted(set(tokens) - set(SPECIAL_TOKENS))
        )
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    pad, bos, eos, unknown = 0, 1, 2, 3

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of ``tokens``; a token outside the vocabulary gets the unknown id."""
        return [self._ids.get(token, self.unknown) for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ``ids``."""
        return [self.tokens[number] for number in ids]


SplitT = TypeVar("SplitT", bound=Sized)


class Task(Generic[SplitT]):
    """Base of all tasks; a task is a frozen dataclass whose fields are its options.

    A task has examples (``ExampleTask``) or text (``tasks.base.text.TextTask``). A subclass of
    these is decorated ``@dataclass(frozen=True, kw_only=True)``, gives ``name``, ``kind``,
    ``difficulty_name`` and ``build_splits``, and has one field with a docstring per option. Types
    are checked here; a subclass that checks more extends ``__post_init__``. A task that generates
    its data has the option ``seed: int = 0``: the data's own seed, the same for every model.

    Splits come in the order train, validation, in-distribution test, out-of-distribution tests:
    the last one is the headline unless a config names another.
    """

    name: ClassVar[str]
    difficulty_name: ClassVar[str] = "difficulty"
    """Axis label for ``Example.difficulty``, with its unit."""
    train_split: ClassVar[str] = "train"
    about: ClassVar[About | None] = None
    """What the menu says of it."""
    selection_splits: ClassVar[tuple[str, ...]] = ()
    """Splits that ``select: best:<split>`` may name; never a test split."""

    # Properties, since an option may decide them; where none does, a class attribute replaces them.
    @property
    def kind(self) -> Kind:
        """Whether a model writes a target, names a class or labels of positions, or reads text."""
        return "sequence_to_sequence"

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """Metrics of this task beside those of its kind, by their names in ``METRICS``."""
        return ()

    @property
    def in_distribution_split(self) -> str | None:
        """Split drawn like train, shown beside every out-of-distribution score; None: no such."""
        return None

    def __post_init__(self) -> None:
        options.check_types(self)

    @classmethod
    def identity(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of the options, beside ``data_hash``, decides the results, as plain data.

        Where data lies is left out: the same content elsewhere is the same.

        Args:
            given: every option by name.

        Raises:
            OptionError: a file that an option names, and whose content counts, cannot be read.
        """
        own = fields(cls)  # type: ignore[arg-type]
        places = {entry.name for entry in own if entry.metadata == options.LOCATION}
        return {name: value for name, value in given.items() if name not in places}

    def build_splits(self) -> Mapping[str, SplitT]:
        """Generate or read every split, train first.

        Raises:
            DataMissing: a data file is not there; the message has the command that fetches it.
            DataDamaged: a data file is there with another checksum.
        """
        raise NotImplementedError

    def splits(self) -> Mapping[str, SplitT]:
        """Return every split, train first, built once per task object.

        Raises:
            DataMissing, DataDamaged: as ``build_splits``.
        """
        if "_splits" not in self.__dict__:
            with _without_collection():
                object.__setattr__(self, "_splits", self.build_splits())
        return self.__dict__["_splits"]

    def split(self, name: str) -> SplitT:
        """Return one split.

        Raises:
            OptionError: there is no such split; the message lists the splits.
        """
        splits = self.splits()
        if name not in splits:
            raise options.OptionError(
                "task.split",
                name,
                f"task {self.name!r} has {', '.join(splits)}{options.nearest(name, splits)}",
            )
        return splits[name]

    def split_names(self) -> list[str]:
        """Return the names of the splits, train first; known without the data where it can be."""
        return list(self.splits())

    def missing(self) -> str | None:
        """Return which data is missing and the command that makes it, for a plan without it.

        None: it is there, or nothing can be planned without it, and ``splits`` says so.
        """
        return None

    def data_hash(self) -> str:
        """Return the SHA-256 of all data, which is part of a run's identity."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return the entry ``task`` of a result, as plain data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "difficulty_name": self.difficulty_name,
            "in_distribution_split": self.in_distribution_split,
        }

    def facts(self) -> dict[str, str]:
        """Return the lines that ``python -m tasks.show`` begins with: what, and its value."""
        return {"kind": self.kind, "data hash": self.data_hash()}

    def save_files(self, directory: Path) -> None:
        """Write the files that a model needs beside it into a run's directory; here none.

        Raises:
            OSError: the directory is not writable or the disk is full.
        """


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Leave out the search for cycles, which goes through all rows again and again as they grow."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Intermediate(NamedTuple):
    """A value that has to be computed on the way to the answer of a row."""

    name: str
    """Which one of the row, as ``after function 2``."""
    value: str
    token: int
    """Place in the source of the token whose reading gives it."""
    key: str
    """What of the source it is a function of."""


class ExampleTask(Task[Sequence[Example]]):
    """Base of the tasks whose splits are rows of source and target tokens.

    A split is a sequence of rows. Where rows are made when they are asked for, row i from the seed
    and i, a subclass also replaces what walks over all of them: ``vocabularies``, ``classes``,
    ``majority_target``, ``max_source_length``, ``max_target_length`` and ``data_hash``.
    """

    def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
        """Return the source and the target vocabulary, built from train only."""
        train = self.splits()[self.train_split]
        source = Vocabulary(token for example in train for token in example.source)
        target = Vocabulary(token for example in train for token in example.target)
        return source, target

    def classes(self) -> tuple[str, ...]:
        """Return the class labels of a classification task, sorted, from train only."""
        return tuple(sorted({example.target[0] for example in self.splits()[self.train_split]}))

    def majority_target(self) -> tuple[str, ...]:
        """Return train's most frequent target; of equally frequent ones the first when sorted."""
        counts = collections.Counter(row.target for row in self.splits()[self.train_split])
        return min(counts, key=lambda target: (-counts[target], target))

    def max_source_length(self) -> int:
        """Return the longest source over all splits, in tokens."""
        return max(len(example.source) for rows in self.splits().values() for example in rows)

    def max_target_length(self) -> int:
        """Return the longest target over all splits, in tokens without the end token."""
        return max(len(example.target) for rows in self.splits().values() for example in rows)

    def data_hash(self) -> str:
        """Return the SHA-256 over every split's rows.

        It covers the splits' names and order, and each row's source, target, category and
        difficulty in order; the metadata, which no model sees, is left out.
        """
        if "_data_hash" not in self.__dict__:
            digest = hashlib.sha256()
            for split, rows in self.splits().items():
                digest.update(f"{json.dumps(split)} {len(rows)}\n".encode())
                for row in rows:
                    digest.update(row_bytes(row))
            object.__setattr__(self, "_data_hash", digest.hexdigest())
        return self.__dict__["_data_hash"]

    def facts(self) -> dict[str, str]:
        """Return the lines that ``python -m tasks.show`` begins with: what, and its value."""
        source, target = (len(words) - len(SPECIAL_TOKENS) for words in self.vocabularies())
        return {
            **super().facts(),
            "vocabulary of train": f"{source} source and {target} target tokens, besides "
            f"{len(SPECIAL_TOKENS)} special ones",
            "in-distribution split": self.in_distribution_split or "none",
        }

    def tables(
        self, examples: Sequence[Example], correct: Sequence[bool]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return further tables of a scored split, beyond those per category and difficulty.

        Args:
            examples: the rows scored.
            correct: for each, whether it counts as right (exact match, or the right class).

        Returns:
            Table name → row label → ``{"exact_match" or "accuracy": share right, "rows": count}``.
        """
        return {}

    def intermediate_values(self, example: Example) -> list[Intermediate]:
        """Return what has to be computed on the way to a row's answer; a task may know none."""
        return []

    def answer_tables(self, answers: Any) -> dict[str, dict[str, dict[str, float]]]:
        """Return tables that need what was written, not just whether it is right.

        Args:
            answers: ``tasks.base.metrics.Answers`` to rows of a split.

        Returns:
            Table name → row label → ``{metric: share, "rows": count}``.
        """
        return {}

    def asked_tables(
        self, answers: Any, ask: Callable[[Sequence[tuple[str, ...]]], Sequence[tuple[str, ...]]]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return tables that need further answers of the model; taken at the end of a run alone.

        Args:
            answers: ``tasks.base.metrics.Answers`` to rows of a split.
            ask: gives the tokens that the model writes for some sources.

        Returns:
            As ``answer_tables``.
        """
        return {}

    def label_tables(self, answers: Any) -> dict[str, dict[str, dict[str, float]]]:
        """Return tables of single labels, of a task with labels of positions.

        Args:
            answers: ``tasks.base.metrics.Answers`` to rows of a split.

        Returns:
            Table name → row label → ``{"label_accuracy": share right, "rows": labels}``.
        """
        return {}


def row_bytes(example: Example) -> bytes:
    """Return the canonical bytes of a row, one JSON line, which hashes of data are taken over."""
    row = [
        " ".join(example.source),
        " ".join(example.target),
        example.category,
        float(example.difficulty),
    ]
    return (json.dumps(row, ensure_ascii=True) + "\n").encode()


def select_rows(examples: Sequence[Example], rows_per_category: int | None) -> list[Example]:
    """Return at most ``rows_per_category`` rows of each category, chosen by the hash of the row.

    The choice depends only on the rows, not on their order, a seed or the machine, and a smaller
    selection is part of every larger one. Rows keep their order. ``None`` keeps them all.

    Raises:
        ValueError: ``rows_per_category`` is below 1.
    """
    if rows_per_category is None:
        return list(examples)
    if rows_per_category < 1:
        raise ValueError(f"rows_per_category={rows_per_category}: must be at least 1")
    by_category: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_category.setdefault(example.category, []).append(index)
    chosen = sorted(
        indices[place]
        for indices in by_category.values()
        for place in first_by_hash([examples[index] for index in indices], rows_per_category)
    )
    return [examples[index] for index in chosen]


def first_by_hash(examples: Sequence[Example], limit: int) -> list[int]:
    """Return the places of at most ``limit`` rows, those of the smallest hashes, in order."""
    if len(examples) <= limit:
        return list(range(len(examples)))
    keys = [hashlib.sha256(row_bytes(example)).digest() for example in examples]
    return sorted(sorted(range(len(examples)), key=keys.__getitem__)[:limit])
