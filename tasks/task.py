"""What a task is: named splits of examples, a vocabulary built from train, and how answers are scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Kind = Literal["sequence_to_sequence", "classification"]

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a split."""

    source: tuple[str, ...]
    """Input tokens."""
    target: tuple[str, ...]
    """Output tokens; for classification the one class label."""
    category: str = ""
    """What kind of row it is, for per-category tables; empty where a task has none."""
    difficulty: float = 0.0
    """What results are plotted against: depth, length, number of digits."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


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
        """Return the ids of ``tokens``; a token that is not in the vocabulary gets the unknown id."""
        return [self._ids.get(token, self.unknown) for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ``ids``."""
        return [self.tokens[number] for number in ids]


class Task:
    """Base of all tasks; a task is a frozen dataclass whose fields are its options.

    A subclass gives ``name``, ``kind``, ``difficulty_name`` and ``build_splits``; the rest is shared.
    Options are keyword-only dataclass fields with a docstring each, checked in ``__post_init__``.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "sequence_to_sequence"
    difficulty_name: ClassVar[str] = "difficulty"
    """Axis label for ``Example.difficulty``, with its unit."""
    train_split: ClassVar[str] = "train"
    in_distribution_split: ClassVar[str | None] = None
    """Split drawn like train, shown beside every out-of-distribution score."""
    selection_splits: ClassVar[tuple[str, ...]] = ()
    """Splits that ``select: best:<split>`` may name; never a test split."""

    def build_splits(self) -> dict[str, list[Example]]:
        """Generate or read every split, train first.

        Raises:
            DataMissing: a data file is not there; the message has the command that fetches it.
            DataDamaged: a data file is there with another checksum.
        """
        raise NotImplementedError

    def splits(self) -> dict[str, list[Example]]:
        """Return every split, train first, built once per task object."""
        if "_splits" not in self.__dict__:
            object.__setattr__(self, "_splits", self.build_splits())
        return self.__dict__["_splits"]

    def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
        """Return the source and the target vocabulary, built from train only."""
        train = self.splits()[self.train_split]
        source = Vocabulary(token for example in train for token in example.source)
        target = Vocabulary(token for example in train for token in example.target)
        return source, target

    def data_hash(self) -> str:
        """Return the SHA-256 over every split's rows: what the run's identity covers of the data."""
        raise NotImplementedError  # shared implementation lives here
