"""What a run leaves when it is done: the content of ``result.json`` and ``timings.json``.

The run that writes these files, the report that reads them and the tests that make some up all use
the classes below, so that no other place has to know a key.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tasks.base.scoring import Scores

_OPTIONAL = {"is_left_out": True}
"""Metadata of a field that is not written where it is None."""

Depth = int | tuple[int, int]
"""Repeats; a pair, encoder first, where the two stacks differ."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSummary:
    """Tokenizer of a text task."""

    name: str
    vocabulary_size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """How much text a split holds."""

    tokens: int
    bytes: int
    documents: int
    duplicates: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """What a report says about the task of a run."""

    name: str
    kind: str
    difficulty_name: str
    headline_split: str
    in_distribution_split: str | None = None
    context_length: int | None = field(default=None, metadata=_OPTIONAL)
    """Tokens of a window; text tasks alone, as the two below."""
    tokenizer: TokenizerSummary | None = field(default=None, metadata=_OPTIONAL)
    data: dict[str, SplitSummary] | None = field(default=None, metadata=_OPTIONAL)
    """Split → its size."""


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """What has to be matched for models to be compared."""

    parameters: int
    macs_per_token: int
    """Multiply-accumulates of a forward pass per token read, at the mean lengths of train."""
    num_layers: int
    """Layers applied."""
    group_size: int
    """Layers with weights of their own."""
    d_model: int
    used_parameters: int | None = field(default=None, metadata=_OPTIONAL)
    """Parameters weighted by use; runs of before do not say it, as those below."""
    training_flops_per_token: int | None = field(default=None, metadata=_OPTIONAL)
    """Operations of forward and backward pass per token read."""
    cache_bytes_per_token: int | None = field(default=None, metadata=_OPTIONAL)
    """What a key/value cache holds of a token in float32."""
    activation_bytes: int | None = field(default=None, metadata=_OPTIONAL)
    """What a step of training holds between its forward and its backward pass; None also where
    that is too large to be measured (``runners.training.activations``)."""


@dataclass(frozen=True, kw_only=True)
class Score(Scores):
    """Scores of one split at one depth."""

    split: str
    repeats: int | list[int] | None
    """Depth at evaluation; a pair, encoder first, where there are two stacks."""
    is_default_depth: bool = True
    """Whether it is the depth that the model was made for."""
    of_curve: bool | None = field(default=None, metadata=_OPTIONAL)
    """Whether only a part of the split's scored rows was, the same at every depth."""
    rows_available: int

    @property
    def depth(self) -> Depth | None:
        """Return the repeats, as one number where encoder and decoder agree."""
        if not isinstance(self.repeats, list):
            return self.repeats
        first, second = self.repeats
        return first if first == second else (first, second)

    @property
    def shown_repeats(self) -> str:
        """Return the repeats as ``4``, as ``4+8`` for two stacks, or nothing."""
        if isinstance(self.repeats, list):
            return "+".join(map(str, self.repeats))
        return "" if self.repeats is None else str(self.repeats)

    def value(self, metric: str) -> float | None:
        """Return a metric; None where it was not taken or is not a number."""
        value = self.metrics.get(metric)
        return None if value is None or not math.isfinite(value) else float(value)

    def groups(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the tables by category, by difficulty and of the task alone, by name."""
        return {"category": self.by_category, "difficulty": self.by_difficulty, **self.tables}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Content of ``result.json``."""

    status: str = "done"
    sweep: str
    variant: str
    seed: int
    hash: str
    parameters: dict[str, Any]
    """Grid point: dotted key → value."""
    select: str
    """Which weights were scored: ``final``, or ``best:<split>``."""
    ema: float | None = field(default=None, metadata=_OPTIONAL)
    """Decay of the average of the weights that was scored; None: the weights themselves were."""
    step: int
    """The step that they are of."""
    task: TaskSummary
    model: ModelSummary
    tokens_seen: int
    notes: list[str]
    """What a table has to say about the scored rows."""
    scores: list[Score]
    """Split by split, the model's own depth first."""

    @property
    def weights(self) -> str:
        """Return in words which weights were scored."""
        return self.select + (f" (their average, ema {self.ema:g})" if self.ema else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return to_plain(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunResult:
        """Return the result that plain data describe; keys that are not known are passed over.

        Raises:
            ValueError: a key is missing or holds something else than it should.
        """
        return from_plain(cls, data)


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Content of ``timings.json``; it adds up over interruptions."""

    wall_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    tokens_trained: int = 0
    """Tokens read in training, those of steps done twice counted twice."""
    starts: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of training; 0 before it began."""
        return self.tokens_trained / self.train_seconds if self.train_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON, with the speed."""
        return to_plain(self) | {"tokens_per_second": self.tokens_per_second}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timings:
        """Return the timings that plain data describe.

        Raises:
            ValueError: a key holds something else than it should.
        """
        return from_plain(cls, data)


# --- plain data -------------------------------------------------------------------------

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Return dataclasses as dicts, a class's own fields before those of its base."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = type(value).__annotations__
        fields = sorted(dataclasses.fields(value), key=lambda each: each.name not in own)
        pairs = ((each, getattr(value, each.name)) for each in fields)
        return {
            each.name: to_plain(item)
            for each, item in pairs
            if not (item is None and each.metadata.get("is_left_out"))
        }
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[T], data: Any, path: str = "") -> T:
    """Return the dataclass that plain data describe; keys that are not known are passed over.

    Raises:
        ValueError: ``scores[3].rows: missing``, or what a key holds and should hold.
    """
    if not isinstance(data, Mapping):
        raise _wrong(data, "an object", path)
    hints, values = _hints(cls), {}  # type: ignore[arg-type]
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        at = f"{path}.{each.name}" if path else each.name
        if each.name in data:
            values[each.name] = _convert(data[each.name], hints[each.name], at)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{at}: missing")
    return cls(**values)


_hints = functools.cache(typing.get_type_hints)
_origin = functools.cache(typing.get_origin)
_arguments = functools.cache(typing.get_args)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """Return a value of JSON as the type that a field's hint names."""
    if type(value) is hint:  # most values, of which a large sweep has millions
        return value
    origin, arguments = _origin(hint), _arguments(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        # Of the unions above, a list alone can be told from the other members by its JSON.
        wanted = [k for k in arguments if (_origin(k) is list) == isinstance(value, list)]
        return _convert(value, (wanted or arguments)[0], path)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(value, "a list", path)
        return [_convert(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, "an object", path)
        return {key: _convert(item, arguments[1], f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, path)  # type: ignore[arg-type]
    if hint is Any or type(value) is hint or (hint is float and type(value) is int):
        return value
    raise _wrong(value, {str: "a word", bool: "true or false"}.get(hint, "a number"), path)


def _wrong(value: Any, expected: str, path: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ValueError(f"{path + '=' if path else ''}{shown}: expected {expected}")
