"""Scoring a model on a split: decode, score, tabulate; of text, take the cross entropy."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moeut.decoding import greedy_decode
from runners.config.schema import EvaluateConfig
from runners.process.ranks import World
from runners.scoring.text import choose_windows, loss_by_position, score_windows, windows_at_once
from runners.training.experiment import Built
from runners.training.objective import DECODE_MARGIN, AnswerObjective
from tasks.base import scoring
from tasks.base.metrics import Prediction
from tasks.base.scoring import Scores
from tasks.base.task import Example, Vocabulary, select_rows


@dataclass(frozen=True, kw_only=True)
class Evaluation(abc.ABC):
    """A split scored at one depth."""

    split: str
    repeats: int | list[int]
    is_default_depth: bool
    rows_available: int
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ``result.json``."""
        return {
            "split": self.split,
            "repeats": self.repeats,
            "is_default_depth": self.is_default_depth,
            "rows_available": self.rows_available,
            **self.scores.to_dict(),
        }

    @abc.abstractmethod
    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of ``predictions.jsonl``."""

    def note(self, config: EvaluateConfig) -> str | None:
        """Return what a table has to say about the rows that were scored, if not all were."""
        if self.scores.rows == self.rows_available:
            return None
        return f"{self.split}: {self.scores.rows} of {self.rows_available} {self._choice(config)}"

    @abc.abstractmethod
    def _choice(self, config: EvaluateConfig) -> str:
        """Say what the rows are, and how some were chosen."""


@dataclass(frozen=True, kw_only=True)
class AnswerEvaluation(Evaluation):
    """Examples and what the model answered."""

    examples: list[Example]
    predictions: list[Prediction]

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of ``predictions.jsonl``, one for each example."""
        correct = scoring.correctness(kind, self.examples, self.predictions)
        return [
            {
                "split": self.split,
                "source": " ".join(example.source),
                "target": " ".join(example.target),
                "prediction": " ".join(prediction.tokens),
                "finished": prediction.finished,
                "correct": right,
                "category": example.category,
                "difficulty": example.difficulty,
            }
            for example, prediction, right in zip(
                self.examples, self.predictions, correct, strict=True
            )
        ]

    def _choice(self, config: EvaluateConfig) -> str:
        return f"rows, {config.rows_of(self.split)} per category chosen by hash"


@dataclass(frozen=True, kw_only=True)
class WindowEvaluation(Evaluation):
    """Windows of text: nothing is decoded, so there are no predictions to keep."""

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Return no line: what there is to say of each token is its loss, too much to keep."""
        return []

    def _choice(self, config: EvaluateConfig) -> str:
        return "windows, evenly spread"


def evaluate_split(
    model: Any,
    built: Built,
    split: str,
    *,
    config: EvaluateConfig,
    device: torch.device,
    precision: str = "float32",
    repeats: int | list[int] | None = None,
    oracle: bool = True,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    world: World = World(),  # noqa: B008 - frozen
) -> Evaluation:
    """Score a model on a split by greedy decoding, the most likely class, or cross entropy.

    Args:
        model: what ``moeut.build`` returned; put into evaluation mode and left as it was.
        built: task and objective.
        split: name of the split.
        config: rows per category, or windows, and the batch size of decoding.
        device: where the model is.
        precision: that of training.
        repeats: depth, where it is not the model's own.
        oracle: also decode without the end token where that can change the outcome.
        on_batch: called before each batch with the rows done and their number; may raise to stop.
        world: the ranks that score a split of text together; any other split is scored by one.

    Raises:
        ValueError: no such split.
    """
    available: Any = built.task.split(split)
    limit = config.rows_of(split)
    common: dict[str, Any] = {
        "split": split,
        "repeats": built.default_repeats if repeats is None else repeats,
        "is_default_depth": repeats is None or repeats == built.default_repeats,
        "rows_available": len(available),
    }
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            if built.task.kind == "language_modelling":
                rows = choose_windows(len(available), limit)
                losses = loss_by_position(
                    functools.partial(model, num_repeats=_num_repeats(built, repeats)),
                    built.objective,
                    built.objective.columns(available),
                    rows,
                    at_once=windows_at_once(built.model_config, available.context_length, device),
                    device=device,
                    on_batch=on_batch,
                    world=world,
                )
                scores = score_windows(losses, len(rows), available)
                return WindowEvaluation(scores=scores, **common)
            examples = select_rows(available, limit)
            predictor = _Predictor(model, built, device, repeats, config.batch_size, on_batch)
            if built.task.kind == "classification":
                predictions, oracle_predictions = predictor.classify(examples), None
            else:
                predictions = predictor.decode(examples)
                oracle_predictions = (
                    predictor.decode_without_end(examples, predictions) if oracle else None
                )
    finally:
        model.train(was_training)
    return AnswerEvaluation(
        examples=examples,
        predictions=predictions,
        scores=scoring.score(built.task, examples, predictions, oracle_predictions),
        **common,
    )


def _num_repeats(
    built: Built, repeats: int | list[int] | None
) -> int | tuple[int | None, int | None] | None:
    """Return the depth as models take it; None where it is the model's own."""
    if repeats is None or repeats == built.default_repeats:
        return None
    return (repeats[0], repeats[1]) if isinstance(repeats, list) else repeats


class _Predictor:
    """Decodes rows in batches of similar length and gives the answers back in the rows' order."""

    def __init__(
        self,
        model: Any,
        built: Built,
        device: torch.device,
        repeats: int | list[int] | None,
        batch_size: int,
        on_batch: Callable[[int, int], None],
    ) -> None:
        self.model = model
        assert isinstance(built.objective, AnswerObjective)
        self.objective = built.objective
        self.device = device
        self.batch_size = batch_size
        self.on_batch = on_batch
        self.num_repeats = _num_repeats(built, repeats)

    def classify(self, examples: Sequence[Example]) -> list[Prediction]:
        def answer(source: torch.Tensor, mask: torch.Tensor) -> list[Prediction]:
            output = self.model(source, source_mask=mask, num_repeats=self.num_repeats)
            numbers = output.logits.argmax(dim=-1).tolist()
            return [Prediction((label,)) for label in self.objective.decode_answer(numbers)]

        return self._in_batches(examples, answer)

    def decode(self, examples: Sequence[Example]) -> list[Prediction]:
        # Above the longest target and its end: no right answer is cut off.
        limit = max(len(example.target) for example in examples) + DECODE_MARGIN
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
        self,
        source: torch.Tensor,
        mask: torch.Tensor,
        *,
        limit: int,
        suppress_eos: bool = False,
    ) -> list[Prediction]:
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
        rows = zip(
            decoded.tokens.tolist(),
            decoded.lengths.tolist(),
            decoded.finished.tolist(),
            strict=True,
        )
        return [
            Prediction(self.objective.decode_answer(tokens[:length]), finished)
            for tokens, length, finished in rows
        ]

    def _in_batches(
        self,
        examples: Sequence[Example],
        answer: Callable[[torch.Tensor, torch.Tensor], list[Prediction]],
    ) -> list[Prediction]:
        sources, lengths = self.objective.prompts(examples)
        order = np.argsort(lengths, kind="stable")
        predictions: list[Prediction] = [Prediction(())] * len(examples)
        for first in range(0, len(order), self.batch_size):
            self.on_batch(first, len(order))
            rows = order[first : first + self.batch_size]
            longest = int(lengths[rows].max())
            source = torch.from_numpy(sources[rows, :longest].astype(np.int64)).to(self.device)
            mask = torch.from_numpy(np.arange(longest) < lengths[rows, None]).to(self.device)
            for row, prediction in zip(rows.tolist(), answer(source, mask), strict=True):
                predictions[row] = prediction
        return predictions
