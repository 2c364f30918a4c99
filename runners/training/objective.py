"""Objectives: how a form of model reads the rows of a kind of task, and its loss on them.

Only this part of training knows the kind of task; the loop, the checkpoints and the data order see
``Columns`` and ``Batch`` alone. Where a task has a ``tasks.Vocabulary``, its special ids are 0
padding, 1 begin, 2 end.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from moeut.ops import cross_entropy_sum
from runners.training.batches import (
    IGNORE,
    Batch,
    Columns,
    PaddedColumns,
    WindowColumns,
    Windows,
    pad,
)
from tasks.base.task import Example, ExampleTask, Vocabulary

if TYPE_CHECKING:
    from tasks.base.text import TextTask

DECODE_MARGIN = 2
"""Tokens that decoding may write beyond the longest target: the end, and one too many."""


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, in parts that add up over the parts of an accumulated batch."""

    cross_entropy_sum: torch.Tensor
    """Cross entropy summed over the counted predictions, in nats."""
    auxiliary: torch.Tensor
    """The model's own loss, already weighted; a mean over sequences."""

    def __add__(self, other: Loss) -> Loss:
        """Return the loss of two passes over one batch."""
        return Loss(
            self.cross_entropy_sum + other.cross_entropy_sum, self.auxiliary + other.auxiliary
        )


class Objective(abc.ABC):
    """Base of all objectives."""

    form: ClassVar[str]
    logs_details: ClassVar[bool] = False
    """Whether rows of the log also say perplexity, speed and how experts are used."""

    def __init__(self, task: Any) -> None:
        self.task = task

    @abc.abstractmethod
    def columns(self, split: Any) -> Columns:
        """Encode a split of the task, as ``task.split`` returns it."""

    @abc.abstractmethod
    def forward(self, model: Any, batch: Batch) -> Any:
        """Return the model's output for a batch.

        Its logits are (..., V) where the batch's targets are (...): (B, T, V) for tokens, (B, V)
        for classes.
        """

    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the vocabulary sizes and classes that the model's config needs."""

    def words(self) -> tuple[Sequence[str], Sequence[str] | None]:
        """Return the words that the model reads, by their tokens, and those of another source.

        Text has no words of its own.
        """
        return (), None

    def lengths(self) -> tuple[int, ...] | None:
        """Return the length of each sequence that the model reads, if all rows have one length."""
        return None

    @abc.abstractmethod
    def longest(self) -> dict[str, int]:
        """Return the most tokens that each stack may have to read, over all splits, by stack."""

    def loss(self, model: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Loss:
        """Return the loss of a batch.

        The cross entropy is summed, not averaged, over the targets that are not ``IGNORE``: parts
        of a batch have different numbers of them.
        """
        output = self.forward(model, batch)
        logits, targets = output.logits, batch.tensors["targets"]
        loss = functools.partial(
            summed_cross_entropy, targets=targets, label_smoothing=label_smoothing
        )
        if output.repeat_shares is None:
            cross_entropy = loss(logits)
        else:
            shares = output.repeat_shares.unbind(dim=-1)
            pairs = zip(output.repeat_logits, shares, strict=True)
            cross_entropy = torch.stack([loss(read, shares=share) for read, share in pairs]).sum()
        return Loss(cross_entropy, torch.as_tensor(output.auxiliary_loss, device=logits.device))


def summed_cross_entropy(
    logits: torch.Tensor,
    *,
    targets: torch.Tensor,
    label_smoothing: float,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sum of the cross entropies of logits (..., V) with targets (...).

    ``shares`` (...): what each counts for; None: one.
    """
    if shares is None and not label_smoothing:
        return cross_entropy_sum(logits.float().flatten(0, -2), targets.flatten(), IGNORE)
    each = functools.partial(
        F.cross_entropy,
        logits.float().flatten(0, -2),
        targets.flatten(),
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
    )
    if shares is None:
        return each(reduction="sum")
    return (each(reduction="none") * shares.flatten()).sum()


class AnswerObjective(Objective):
    """Base of the objectives of tasks with examples: a source that asks, a target that answers."""

    task: ExampleTask
    names_classes: ClassVar[bool] = False
    """Whether the answer is the most likely class; otherwise it is decoded token by token."""

    @abc.abstractmethod
    def encode_source(self, example: Example) -> list[int]:
        """Return the ids that the model reads of a row's source."""

    @abc.abstractmethod
    def decode_answer(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Return the tokens, or the label, that predicted ids stand for."""

    def _sources(self, split: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model reads of each row, (N, S) padded, and the lengths (N,)."""
        return pad([self.encode_source(example) for example in split], Vocabulary.pad)

    @property
    def _longest_source(self) -> int:
        return self.task.max_source_length() + 2  # between its two marks

    @property
    def _longest_target(self) -> int:
        return self.task.max_target_length() + DECODE_MARGIN


def _enclose(vocabulary: Vocabulary, tokens: Sequence[str]) -> list[int]:
    return [vocabulary.bos, *vocabulary.encode(tokens), vocabulary.eos]


class EncoderDecoderObjective(AnswerObjective):
    """Reads ``BOS x EOS`` with the encoder and ``BOS y`` with the decoder; predicts ``y EOS``."""

    form = "encoder_decoder"

    def __init__(self, task: ExampleTask) -> None:
        super().__init__(task)
        self.source, self.target = task.vocabularies()

    def sizes(self) -> dict[str, int]:
        return {
            "vocabulary_size": len(self.target),
            "source_vocabulary_size": len(self.source),
        }

    def words(self) -> tuple[Sequence[str], Sequence[str] | None]:
        return self.target.tokens, self.source.tokens

    def longest(self) -> dict[str, int]:
        return {"encoder": self._longest_source, "decoder": self._longest_target}

    def encode_source(self, example: Example) -> list[int]:
        return _enclose(self.source, example.source)

    def decode_answer(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.target.decode(ids))

    def columns(self, split: Sequence[Example]) -> PaddedColumns:
        answers = [self.target.encode(example.target) for example in split]
        source, source_lengths = self._sources(split)  # (N, S), (N,)
        # (N, T) both, one place apart: at each token of the target stands the one after it.
        target, lengths = pad([[self.target.bos, *ids] for ids in answers], self.target.pad)
        targets, _ = pad([[*ids, self.target.eos] for ids in answers], IGNORE)
        return PaddedColumns(
            arrays={"source": source, "target": target, "targets": targets},
            lengths={"source": source_lengths, "target": lengths, "targets": lengths},
        )

    def forward(self, model: Any, batch: Batch) -> Any:
        tensors = batch.tensors
        return model(
            tensors["source"],  # (B, S)
            tensors["target"],  # (B, T)
            source_mask=tensors["source_mask"],
            target_mask=tensors["target_mask"],
        )


class PrefixObjective(AnswerObjective):
    """Reads ``BOS x EOS y`` with one causal stack, for which all of ``BOS x EOS`` is visible.

    Both sides share one vocabulary. Only ``y EOS`` is predicted: targets are the tokens one place
    later, and those before the prompt's end are ``IGNORE``.
    """

    form = "decoder_lm"

    def __init__(self, task: ExampleTask) -> None:
        super().__init__(task)
        source, target = task.vocabularies()
        self.vocabulary = Vocabulary((*source.tokens, *target.tokens))

    def sizes(self) -> dict[str, int]:
        return {"vocabulary_size": len(self.vocabulary)}

    def words(self) -> tuple[Sequence[str], Sequence[str] | None]:
        return self.vocabulary.tokens, None

    def longest(self) -> dict[str, int]:
        return {"decoder": self._longest_source + self._longest_target}

    def encode_source(self, example: Example) -> list[int]:
        return _enclose(self.vocabulary, example.source)

    def decode_answer(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.vocabulary.decode(ids))

    def columns(self, split: Sequence[Example]) -> PaddedColumns:
        prompts = [self.encode_source(example) for example in split]
        answers = [self.vocabulary.encode(example.target) for example in split]
        pairs = list(zip(prompts, answers, strict=True))
        tokens, lengths = pad([x + y for x, y in pairs], self.vocabulary.pad)  # (N, T), (N,)
        # The last token of the prompt predicts the first of the answer: hence one less.
        targets, _ = pad(
            [[IGNORE] * (len(x) - 1) + y + [self.vocabulary.eos] for x, y in pairs], IGNORE
        )
        prefix = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        return PaddedColumns(
            arrays={"tokens": tokens, "targets": targets, "prefix_length": prefix},
            lengths={"tokens": lengths, "targets": lengths},
        )

    def forward(self, model: Any, batch: Batch) -> Any:
        tensors = batch.tensors
        return model(
            tensors["tokens"],  # (B, T)
            padding_mask=tensors["tokens_mask"],
            prefix_length=tensors["prefix_length"],  # (B,)
        )


class ClassificationObjective(AnswerObjective):
    """Reads ``BOS x EOS`` with an encoder and names a class."""

    form = "encoder_classifier"
    names_classes = True

    def __init__(self, task: ExampleTask) -> None:
        super().__init__(task)
        self.source, _ = task.vocabularies()
        self.classes = task.classes()
        self._numbers = {label: number for number, label in enumerate(self.classes)}

    def sizes(self) -> dict[str, int]:
        return {"vocabulary_size": len(self.source), "num_classes": len(self.classes)}

    def words(self) -> tuple[Sequence[str], Sequence[str] | None]:
        return self.source.tokens, None

    def longest(self) -> dict[str, int]:
        return {"encoder": self._longest_source}

    def encode_source(self, example: Example) -> list[int]:
        return _enclose(self.source, example.source)

    def decode_answer(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.classes[number] for number in ids)

    def columns(self, split: Sequence[Example]) -> PaddedColumns:
        source, lengths = self._sources(split)
        labels = np.array([self._numbers[example.target[0]] for example in split])  # (N,)
        return PaddedColumns(
            arrays={"source": source, "targets": labels}, lengths={"source": lengths}
        )

    def forward(self, model: Any, batch: Batch) -> Any:
        return model(batch.tensors["source"], source_mask=batch.tensors["source_mask"])


class LanguageObjective(Objective):
    """Reads windows of text and predicts each next token.

    With the task's ``attend_across_documents: false`` tokens see their own document alone.
    """

    task: TextTask
    form = "decoder_lm"
    logs_details = True

    def sizes(self) -> dict[str, int]:
        return {"vocabulary_size": self.task.num_ids()}

    def lengths(self) -> tuple[int, ...]:
        return (self.task.context_length,)

    def longest(self) -> dict[str, int]:
        return {"decoder": self.task.context_length}

    def columns(self, split: Windows) -> WindowColumns:
        return WindowColumns(split, separate_documents=not self.task.attend_across_documents)

    def forward(self, model: Any, batch: Batch) -> Any:
        documents = batch.tensors.get("documents")
        if documents is None:
            return model(batch.tensors["tokens"])
        return model(batch.tensors["tokens"], document_numbers=documents)


OBJECTIVES: dict[str, dict[str, type[Objective]]] = {
    "sequence_to_sequence": {
        "encoder_decoder": EncoderDecoderObjective,
        "decoder_lm": PrefixObjective,
    },
    "classification": {"encoder_classifier": ClassificationObjective},
    "language_modelling": {"decoder_lm": LanguageObjective},
}
"""Objectives by the task's kind and the model's form; a kind's first form is its default."""
