"""Every metric in one table: what it is, how it is computed, and how reports show it.

To add a metric, write the function that computes it and give it an entry in ``METRICS``. Scoring,
the ``headline`` of sweep files, results, tables and figures read it from there.

Answers are compared with the gold target as *words*, never as vocabulary ids: a gold token that
training never showed has the unknown id, and so has every wrong guess for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.base.reformatted_match import normal_form, numbered_first
from tasks.base.semantic_match import semantic_match
from tasks.base.task import EOS, LABELLINGS, UNSCORED, Example

# --- what is measured -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model wrote for one example."""

    tokens: tuple[str, ...]
    """Output tokens without the end token; for classification the one label; for labels of
    positions one for each source token, ``UNSCORED`` where nothing is scored."""
    finished: bool = True
    """Whether the model wrote the end token itself; False where decoding was cut off."""


@dataclass(frozen=True)
class Answers:
    """Rows of a split, and what a model wrote for each of them.

    Raises:
        ValueError: no rows, or another number of predictions than of rows.
    """

    examples: Sequence[Example]
    predictions: Sequence[Prediction]
    """One for each row, decoded up to a limit above the longest target."""
    oracle: Sequence[Prediction] | None = None
    """One for each row, decoded with the end token forbidden for at least the gold length."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("no rows to score")
        for predictions in (self.predictions, self.oracle):
            if predictions is not None and len(predictions) != len(self.examples):
                raise ValueError(f"{len(predictions)} predictions for {len(self.examples)} rows")

    def share(self, is_right: Callable[[Example, Prediction], bool]) -> float:
        """Return the share of rows whose prediction is right."""
        pairs = zip(self.examples, self.predictions, strict=True)
        return sum(is_right(*pair) for pair in pairs) / len(self.examples)


@dataclass(frozen=True)
class TextLoss:
    """What a language model's loss on a split of text is, and how much text that is."""

    loss: float
    """Mean cross entropy in nats per token, each predicted from those before it in its window."""
    num_tokens: int
    """Tokens of the whole split, boundaries between documents among them."""
    num_bytes: int
    """UTF-8 bytes of the text that these tokens stand for."""


# --- how it is measured -----------------------------------------------------------------


def is_exact(example: Example, prediction: Prediction) -> bool:
    """Return whether an output is the whole target and was ended by the model."""
    return prediction.finished and prediction.tokens == example.target


def is_label(example: Example, prediction: Prediction) -> bool:
    """Return whether a predicted label is the right one."""
    return prediction.tokens == example.target


def begins_with_target(example: Example, prediction: Prediction) -> bool:
    """Return whether an output begins with the whole target."""
    return prediction.tokens[: len(example.target)] == example.target


def eos_oracle_match(answers: Answers) -> float | None:
    """Return the share of oracle outputs that begin with the target; None without an oracle."""
    if answers.oracle is None:
        return None
    return Answers(answers.examples, answers.oracle).share(begins_with_target)


def token_accuracy(answers: Answers) -> float:
    """Return the share of right tokens among those of all targets and their ends."""
    right = total = 0
    for example, prediction in zip(answers.examples, answers.predictions, strict=True):
        gold = (*example.target, EOS)
        written = (*prediction.tokens, EOS) if prediction.finished else prediction.tokens
        right += sum(a == b for a, b in zip(gold, written, strict=False))
        total += len(gold)
    return right / total


def scored_labels(example: Example, prediction: Prediction) -> list[bool]:
    """Return for each scored position of a row whether its label is right."""
    pairs = zip(example.target, prediction.tokens, strict=True)
    return [label == written for label, written in pairs if label != UNSCORED]


def label_accuracy(answers: Answers) -> float:
    """Return the share of right labels among all that are scored."""
    right = total = 0
    for example, prediction in zip(answers.examples, answers.predictions, strict=True):
        scored = scored_labels(example, prediction)
        right += sum(scored)
        total += len(scored)
    return right / total


def mean_over_lengths(answers: Answers) -> float:
    """Return the mean over lengths of the share of right labels at that length."""
    by_length: dict[float, list[tuple[Example, Prediction]]] = {}
    for example, prediction in zip(answers.examples, answers.predictions, strict=True):
        by_length.setdefault(example.difficulty, []).append((example, prediction))
    groups = [Answers(*map(list, zip(*pairs, strict=True))) for pairs in by_length.values()]
    return sum(map(label_accuracy, groups)) / len(groups)


def is_renaming(example: Example, prediction: Prediction) -> bool:
    """Return whether an output says what the target says, as ReCOGS compares logical forms."""
    gold, written = " ".join(example.target), " ".join(prediction.tokens)
    return prediction.finished and semantic_match(gold, written)


def is_one_to_one(example: Example, prediction: Prediction) -> bool:
    """Return whether an output is the target but for the names of variables and the order."""
    gold, written = " ".join(example.target), " ".join(prediction.tokens)
    return prediction.finished and semantic_match(gold, written, one_to_one=True)


def is_reformatted(example: Example, prediction: Prediction) -> bool:
    """Return whether an output has the target's normal form, as SLOG compares logical forms."""
    gold, written = " ".join(example.target), " ".join(prediction.tokens)
    return prediction.finished and normal_form(gold) == normal_form(written)


def is_reformatted_strictly(example: Example, prediction: Prediction) -> bool:
    """Return whether output and target are equal once numbered, and then sorted."""
    gold, written = " ".join(example.target), " ".join(prediction.tokens)
    return prediction.finished and numbered_first(gold) == numbered_first(written)


def perplexity(loss: float) -> float:
    """Return exp(loss), of a mean cross entropy in nats; infinity where no float is so large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(text: TextLoss) -> float:
    """Return loss · tokens / bytes / ln 2."""
    return text.loss * text.num_tokens / text.num_bytes / math.log(2)


# --- the table --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that a split is scored by."""

    kinds: tuple[str, ...]
    """Kinds of task that have it; none where single tasks name it among their ``own_metrics``."""
    compute: Callable[[Any], float | None]
    """Its value from ``Answers``, or from a ``TextLoss``; None where it cannot be taken."""
    meaning: str
    is_headline: bool = False
    """Whether its kinds are judged by it; each kind has one such metric."""
    lower_is_better: bool = False
    decimals: int = 3
    """Decimals in tables: as many as differences between models need."""


METRICS: dict[str, Metric] = {
    "exact_match": Metric(
        kinds=("sequence_to_sequence",),
        compute=lambda answers: answers.share(is_exact),
        meaning="the model ended its output by itself, and it is the target; an output that was "
        "cut off is wrong, however well it begins",
        is_headline=True,
    ),
    "prefix_match": Metric(
        kinds=("sequence_to_sequence",),
        compute=lambda answers: answers.share(begins_with_target),
        meaning="the output begins with the target, whatever follows and whether or not it ended",
    ),
    "token_accuracy": Metric(
        kinds=("sequence_to_sequence",),
        compute=token_accuracy,
        meaning="share of right tokens among the n + 1 of a target and its end, position by "
        "position, over all rows; past the output's end every token is wrong. Not teacher-forced",
    ),
    "eos_oracle_match": Metric(
        kinds=("sequence_to_sequence",),
        compute=eos_oracle_match,
        meaning="the output decoded with the end token forbidden, cut to the target's length, is "
        "the target (Newman et al. 2020, arXiv 2010.07174): right but for when to stop",
    ),
    "semantic_match": Metric(
        kinds=(),
        compute=lambda answers: answers.share(is_renaming),
        meaning="some renaming of the output's variables makes its atoms those of the target, in "
        "any order, as ReCOGS is published; variables may share a name, so that two whole copies "
        "count as right",
    ),
    "one_to_one_match": Metric(
        kinds=(),
        compute=lambda answers: answers.share(is_one_to_one),
        meaning="semantic_match with a name of its own for each variable: a copy too many is wrong",
    ),
    "reformatted_match": Metric(
        kinds=(),
        compute=lambda answers: answers.share(is_reformatted),
        meaning="output and target are equal once their atoms are sorted and their variables "
        "numbered in the order of appearance, as SLOG is published; the sort sees old numbers, so "
        "that some renamings count as wrong",
    ),
    "strict_reformatted_match": Metric(
        kinds=(),
        compute=lambda answers: answers.share(is_reformatted_strictly),
        meaning="reformatted_match with the two steps the other way round, as SLOG's code has it "
        "too: variables are numbered before atoms are sorted, so that any renaming is right and "
        "atoms in another order are wrong where that moves the numbers",
    ),
    "accuracy": Metric(
        kinds=("classification",),
        compute=lambda answers: answers.share(is_label),
        meaning="share of right labels",
        is_headline=True,
    ),
    "sequence_accuracy": Metric(
        kinds=LABELLINGS,
        compute=lambda answers: answers.share(is_label),
        meaning="share of rows of which every scored label is right; of a grid, all cells",
        is_headline=True,
    ),
    "label_accuracy": Metric(
        kinds=LABELLINGS,
        compute=label_accuracy,
        meaning="share of right labels among the scored positions of all rows",
    ),
    "mean_over_lengths": Metric(
        kinds=LABELLINGS,
        compute=mean_over_lengths,
        meaning="label_accuracy of each length, and the mean over lengths: the score of the "
        "Chomsky-hierarchy suite (arXiv 2207.02098)",
    ),
    "loss": Metric(
        kinds=("language_modelling",),
        compute=lambda text: text.loss,
        meaning="mean cross entropy in nats per token",
        lower_is_better=True,
        decimals=4,
    ),
    "perplexity": Metric(
        kinds=("language_modelling",),
        compute=lambda text: perplexity(text.loss),
        meaning="exp(loss), per token: comparable between models of one tokenizer alone",
        lower_is_better=True,
        decimals=2,
    ),
    "bits_per_byte": Metric(
        kinds=("language_modelling",),
        compute=bits_per_byte,
        meaning="loss · tokens / bytes / ln 2: comparable between tokenizers too",
        is_headline=True,
        lower_is_better=True,
        decimals=4,
    ),
}
"""Metrics in the order in which results list them."""

HEADLINES = tuple(name for name, metric in METRICS.items() if metric.is_headline)
"""Metrics that a kind of task is judged by."""


def metrics_of(kind: str) -> list[str]:
    """Return the names of the metrics that a kind of task has."""
    return [name for name, metric in METRICS.items() if kind in metric.kinds]


def headline_metric(kind: str) -> str:
    """Return the name of the metric that a kind of task is judged by."""
    return next(name for name in HEADLINES if kind in METRICS[name].kinds)


def is_lower_better(name: str) -> bool:
    """Return whether a lower value of a metric is a better one; False for unknown metrics."""
    return name in METRICS and METRICS[name].lower_is_better


def measure(
    kind: str, measured: Answers | TextLoss, own_metrics: Sequence[str] = ()
) -> dict[str, float]:
    """Return every metric of a kind of task that can be taken, and those that the task names."""
    names = [*metrics_of(kind), *own_metrics]
    values = {name: METRICS[name].compute(measured) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def selection_score(kind: str, metrics: Mapping[str, float]) -> float:
    """Return the headline metric, negated where lower is better, so that the highest is the best.

    NaN ranks below every number.
    """
    name = headline_metric(kind)
    value = -metrics[name] if is_lower_better(name) else metrics[name]
    return -math.inf if math.isnan(value) else value
