"""Scoring a model on a split at a depth: of rows its answers, of text the cross entropy."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch

from moeut.decoding import evaluation_mode
from runners.config.schema import EvaluateConfig
from runners.process.ranks import World
from runners.reporting.run_result import Score
from runners.scoring.answers import Answerer
from runners.training.experiment import Built
from runners.training.objective import AnswerObjective, Objective
from runners.training.parallel import autocast
from tasks.base import scoring
from tasks.base.metrics import Answers
from tasks.base.scoring import Scores
from tasks.base.task import Example, Kind, first_by_hash, select_rows

if TYPE_CHECKING:
    from runners.training.position_objective import PositionObjective


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A split scored at one depth, and what the model answered."""

    score: Score
    answers: Answers | None = None
    """Of text None: what there is to say of each token is its loss, too much to keep."""
    choice: str
    """What the rows are, and how some were chosen where not all were."""

    def prediction_rows(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of ``predictions.jsonl``, one for each row that was answered."""
        if self.answers is None:
            return []
        examples, predictions = self.answers.examples, self.answers.predictions
        correct = scoring.correctness(kind, examples, predictions)
        return [
            {
                "split": self.score.split,
                "source": " ".join(example.source),
                "target": " ".join(example.target),
                "prediction": " ".join(prediction.tokens),
                "finished": prediction.finished,
                "correct": right,
                "category": example.category,
                "difficulty": example.difficulty,
            }
            for example, prediction, right in zip(examples, predictions, correct, strict=True)
        ]

    def note(self) -> str | None:
        """Return what a table has to say about the scored rows; None where all were scored."""
        score = self.score
        if score.rows == score.rows_available:
            return None
        return f"{score.split}: {score.rows} of {score.rows_available} {self.choice}"


@dataclass(frozen=True, kw_only=True)
class SplitScorer(abc.ABC):
    """Scores the splits of a task with one model; ``split_scorer`` makes the one for a task."""

    scored_together: ClassVar[bool]
    """Whether the ranks share the rows of a split; otherwise one of them scores all of it."""
    few: ClassVar[int] = 256
    """Rows of a split on which a curve over depth is scored."""

    model: Any
    """What ``moeut.build`` returned; put into evaluation mode and left as it was."""
    built: Built
    config: EvaluateConfig
    """Rows per category, or windows, and the batch size of decoding."""
    device: torch.device
    """Where the model is."""
    precision: str = "float32"
    """That of training."""
    on_batch: Callable[[int, int], None] = field(default=lambda done, total: None)
    """Called before each batch with the rows done and their number; may raise to stop."""
    world: World = World()  # noqa: RUF009 - frozen
    """The ranks that score a split together."""

    def score(
        self,
        split: str,
        *,
        repeats: int | list[int] | None = None,
        oracle: bool = True,
        of_curve: bool = False,
    ) -> Evaluation:
        """Score a split.

        Args:
            split: its name.
            repeats: depth; None: the model's own.
            oracle: also decode without the end token where that can change the outcome, and ask
                what the tables of a task need beyond its rows.
            of_curve: score at most ``few`` rows, the same at every depth.

        Raises:
            ValueError: no such split.
        """
        own = self.built.default_repeats
        repeats = own if repeats is None else repeats
        rows = self.built.task.split(split)
        # None for the model's own depth: a model of fixed depth refuses any number.
        num_repeats = None if repeats == own else _as_models_take(repeats)
        with (
            evaluation_mode(self.model),
            torch.inference_mode(),
            autocast(self.device, self.precision),
        ):
            chosen = self._choose(rows, self.config.rows_of(split))
            few = self._fewer(chosen) if of_curve else chosen
            scores, answers = self._score(rows, few, num_repeats, oracle)
        is_part = len(few) < len(chosen)
        score = Score(
            split=split,
            repeats=repeats,
            is_default_depth=repeats == own and not is_part,
            of_curve=is_part or None,
            rows_available=len(rows),
            **vars(scores),
        )
        return Evaluation(score=score, answers=answers, choice=self._choice(split))

    def few_by_difficulty(self, split: str) -> dict[float, list[Example]]:
        """Return few of the scored rows of a split by their difficulty; none of text."""
        return {}

    def read(self, rows: list[Example]) -> None:
        """Let the model answer some rows, at its own depth."""
        with (
            evaluation_mode(self.model),
            torch.inference_mode(),
            autocast(self.device, self.precision),
        ):
            self._score(rows, rows, None, False)

    @abc.abstractmethod
    def _choose(self, rows: Any, limit: int | None) -> Any:
        """Return those of a split's rows that are scored, ``limit`` being the setting's."""

    @abc.abstractmethod
    def _fewer(self, chosen: Any) -> Any:
        """Return at most ``few`` of the rows chosen, whichever depth they are for."""

    @abc.abstractmethod
    def _score(
        self, rows: Any, chosen: Any, num_repeats: Any, oracle: bool
    ) -> tuple[Scores, Answers | None]:
        """Return the scores of the rows chosen, and what the model answered if it did."""

    @abc.abstractmethod
    def _choice(self, split: str) -> str:
        """Return what the rows are, and how some are chosen where not all are scored."""


class AnswerScorer(SplitScorer):
    """Scores answers: decoded greedily, or the most likely class."""

    scored_together = False

    def few_by_difficulty(self, split: str) -> dict[float, list[Example]]:
        """Return few of the scored rows of a split by their difficulty, the easiest first."""
        found: dict[float, list[Example]] = {}
        chosen = self._choose(self.built.task.split(split), self.config.rows_of(split))
        for example in self._fewer(chosen):
            if example.difficulty is not None:
                found.setdefault(example.difficulty, []).append(example)
        return dict(sorted(found.items()))

    def _choose(self, rows: Any, limit: int | None) -> list[Example]:
        return select_rows(rows, limit)

    def _fewer(self, chosen: list[Example]) -> list[Example]:
        """Return few rows by their hash, of each category about its share."""
        return [chosen[place] for place in first_by_hash(chosen, self.few)]

    def _score(
        self, rows: Any, chosen: list[Example], num_repeats: Any, oracle: bool
    ) -> tuple[Scores, Answers | None]:
        objective = self.built.objective
        assert isinstance(objective, AnswerObjective)
        answerer = Answerer(
            self.model,
            objective,
            device=self.device,
            num_repeats=num_repeats,
            batch_size=self.config.batch_size,
            on_batch=self.on_batch,
        )
        answers = answerer.answer(chosen, oracle=oracle)
        scores = scoring.score(objective.task, answers)
        if oracle:
            longest = max((len(row.target) for row in chosen), default=0)

            def ask(sources: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
                return answerer.ask(sources, longest=longest)

            scores.tables.update(objective.task.asked_tables(answers, ask))
        return scores, answers

    def _choice(self, split: str) -> str:
        return f"rows, {self.config.rows_of(split)} per category chosen by hash"


class LabelScorer(AnswerScorer):
    """Scores the most likely label at each position."""

    def _score(
        self, rows: Any, chosen: list[Example], num_repeats: Any, oracle: bool
    ) -> tuple[Scores, Answers | None]:
        objective = cast("PositionObjective", self.built.objective)

        def label(call_of: Any = None) -> Answers:
            return objective.label(
                functools.partial(self.model, num_repeats=num_repeats),
                chosen,
                device=self.device,
                batch_size=self.config.batch_size,
                on_batch=self.on_batch,
                call_of=call_of,
            )

        answers = label()
        scores = scoring.score(objective.task, answers)
        if oracle and num_repeats is None and self.config.choose_repeats:
            scores.tables.update(self._choices(chosen, answers, label))
        return scores, answers

    def _choices(
        self, chosen: list[Example], fixed: Answers, label: Callable[[Any], Answers]
    ) -> dict[str, scoring.Table]:
        """Return the table of rows read at depths that are chosen for each."""
        from runners.scoring import choice  # which few runs do

        task, own = self.built.objective.task, self.built.default_repeats
        assert isinstance(own, int)  # labellings have one stack
        most = self.config.most_repeats or own
        ways = {
            "confidence": lambda: choice.by_confidence(self.model, most),
            "length": lambda: choice.by_length(
                self.model, choice.repeats_of_lengths(task, chosen, most)
            ),
        }
        answers = {"fixed": fixed}
        for way in self.config.choose_repeats:
            answers[way] = label(ways[way]())
        return {choice.NAME: choice.table_of(task.kind, answers)}


class TextScorer(SplitScorer):
    """Scores windows of text: the cross entropy of each token after those before it."""

    scored_together = True
    few = 64

    def _choose(self, rows: Any, limit: int | None) -> np.ndarray:
        from runners.scoring.text import choose_windows  # which runs with examples do without

        return choose_windows(len(rows), limit)

    def _fewer(self, chosen: np.ndarray) -> np.ndarray:
        """Return few windows, evenly spread over those chosen."""
        from runners.scoring.text import choose_windows

        return chosen[choose_windows(len(chosen), self.few)]

    def _score(
        self, rows: Any, chosen: np.ndarray, num_repeats: Any, oracle: bool
    ) -> tuple[Scores, Answers | None]:
        from runners.scoring.text import (
            loss_by_position,
            score_windows,
            windows_at_once,
        )

        losses = loss_by_position(
            functools.partial(self.model, num_repeats=num_repeats),
            self.built.objective,
            self.built.objective.columns(rows),
            chosen,
            at_once=windows_at_once(self.built.model_config, rows.context_length, self.device),
            device=self.device,
            on_batch=self.on_batch,
            world=self.world,
        )
        return score_windows(losses, len(chosen), rows), None

    def _choice(self, split: str) -> str:
        return "windows, evenly spread"


SCORERS: dict[Kind, type[SplitScorer]] = {
    "sequence_to_sequence": AnswerScorer,
    "classification": AnswerScorer,
    "position_labelling": LabelScorer,
    "causal_labelling": LabelScorer,
    "language_modelling": TextScorer,
}
"""What scores a split, by the task's kind."""


def split_scorer(objective: Objective) -> type[SplitScorer]:
    """Return the class that scores models trained on an objective."""
    return SCORERS[objective.task.kind]


def _as_models_take(repeats: int | list[int]) -> int | tuple[int, int]:
    return (repeats[0], repeats[1]) if isinstance(repeats, list) else repeats
