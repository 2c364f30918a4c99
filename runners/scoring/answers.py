"""What a model answers to the rows of a split: decoded sequences, or the most likely classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from moeut.decoding import greedy_decode
from runners.training.batches import padded_batch
from runners.training.objective import DECODE_MARGIN, AnswerObjective
from tasks.base.metrics import Answers, Prediction
from tasks.base.task import Example, Vocabulary


class Answerer:
    """Answers rows in batches of similar length, and gives the answers back in the rows' order.

    Args:
        model: in evaluation mode, on ``device``.
        objective: encodes rows and decodes answers.
        device: where the model is.
        num_repeats: depth as models take it; None: the model's own.
        batch_size: rows of a batch.
        on_batch: called before each batch with the rows done and their number; may raise to stop.
    """

    def __init__(
        self,
        model: Any,
        objective: AnswerObjective,
        *,
        device: torch.device,
        num_repeats: Any = None,
        batch_size: int = 64,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.model, self.objective, self.device = model, objective, device
        self.num_repeats, self.batch_size, self.on_batch = num_repeats, batch_size, on_batch

    def answer(self, examples: Sequence[Example], *, oracle: bool = True) -> Answers:
        """Return the answers to some rows; with ``oracle`` also those without an end token."""
        if self.objective.names_classes:
            return Answers(examples, self.classify(examples))
        predictions = self.decode(examples)
        if not oracle:
            return Answers(examples, predictions)
        return Answers(examples, predictions, self.decode_without_end(examples, predictions))

    def classify(self, examples: Sequence[Example]) -> list[Prediction]:
        """Return the most likely class of each row."""

        def answer(source: torch.Tensor, mask: torch.Tensor) -> list[Prediction]:
            output = self.model(source, source_mask=mask, num_repeats=self.num_repeats)
            numbers = output.logits.argmax(dim=-1).tolist()
            return [Prediction((label,)) for label in self.objective.decode_answer(numbers)]

        return self._in_batches(examples, answer)

    def decode(self, examples: Sequence[Example]) -> list[Prediction]:
        """Return the most likely tokens of each row, one after the other."""
        return self._decode(examples, max(len(example.target) for example in examples))

    def ask(self, sources: Sequence[tuple[str, ...]], *, longest: int) -> list[tuple[str, ...]]:
        """Return what is written for sources that are no rows, ``longest`` the longest target."""
        examples = [Example(source, ()) for source in sources]
        return [prediction.tokens for prediction in self._decode(examples, longest)]

    def _decode(self, examples: Sequence[Example], longest: int) -> list[Prediction]:
        limit = longest + DECODE_MARGIN  # its end, too, so that no right answer is cut off
        return self._in_batches(examples, lambda *batch: self._greedy(*batch, limit=limit))

    def decode_without_end(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> list[Prediction]:
        """Decode again, the end token forbidden, where that can make a wrong prefix right.

        An output at least as long as the target had no end token before the target's length, and
        one that already departs from the target cannot come back: both stay as they are.
        """
        again = [
            index
            for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
            if len(prediction.tokens) < len(example.target)
            and example.target[: len(prediction.tokens)] == prediction.tokens
        ]
        result = list(predictions)
        if again:
            rows = [examples[index] for index in again]
            limit = max(len(row.target) for row in rows)
            decoded = self._in_batches(
                rows, lambda *batch: self._greedy(*batch, limit=limit, suppress_eos=True)
            )
            for index, prediction in zip(again, decoded, strict=True):
                result[index] = prediction
        return result

    def _greedy(
        self, source: torch.Tensor, mask: torch.Tensor, *, limit: int, suppress_eos: bool = False
    ) -> list[Prediction]:
        """Decode at most ``limit`` tokens for each row of a source (B, S) with its mask (B, S)."""
        decoded = greedy_decode(
            self.model,
            source,
            mask,
            bos=Vocabulary.bos,
            eos=Vocabulary.eos,
            pad=Vocabulary.pad,
            max_length=limit,
            suppress_eos=suppress_eos,
            num_repeats=self.num_repeats,
        )
        columns = decoded.tokens.tolist(), decoded.lengths.tolist(), decoded.finished.tolist()
        return [
            Prediction(self.objective.decode_answer(tokens[:length]), finished)
            for tokens, length, finished in zip(*columns, strict=True)
        ]

    def _in_batches(
        self,
        examples: Sequence[Example],
        answer: Callable[[torch.Tensor, torch.Tensor], list[Prediction]],
    ) -> list[Prediction]:
        """Return what ``answer`` says to batches of sources and masks, both (B, S)."""
        prompts = [self.objective.encode_source(example) for example in examples]
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable").tolist()
        predictions: list[Prediction] = [Prediction(())] * len(examples)
        for first in range(0, len(order), self.batch_size):
            self.on_batch(first, len(order))
            rows = order[first : first + self.batch_size]
            batch = padded_batch([prompts[row] for row in rows], Vocabulary.pad, self.device)
            for row, prediction in zip(rows, answer(*batch), strict=True):
                predictions[row] = prediction
        return predictions
