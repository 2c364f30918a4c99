"""Scoring a run on its splits: which ranks do it, with which weights, and what stops it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from runners.config.schema import RunConfig
from runners.process.messages import ScoringProgress
from runners.process.ranks import Agreement, World
from runners.process.signals import Stopped
from runners.scoring.splits import Evaluation, SplitScorer, split_scorer
from runners.training import parallel
from runners.training.experiment import Built
from runners.training.journal import Journal
from tasks.base.options import exact_text
from tasks.base.scoring import Table


class Scorer:
    """Scores a model of a run, in training or trained.

    A split of text is scored by all ranks together, any other by rank 0 while the others wait.

    Args:
        config: the run.
        built: what it describes.
        device: where the model is.
        agreement: this rank among the others; a stop ends scoring between two batches.
        journal: is told the time that scoring takes and how far it is.
    """

    def __init__(
        self,
        config: RunConfig,
        built: Built,
        *,
        device: torch.device,
        agreement: Agreement,
        journal: Journal,
    ) -> None:
        self.config, self.built, self.device = config, built, device
        self.agreement, self.journal = agreement, journal
        self._scorer = split_scorer(built.objective)
        self._together = self._scorer.scored_together

    def on_the_way(self, model: Any, *, step: int) -> dict[str, dict[str, float]]:
        """Return the metrics of each interval split, on every rank.

        Raises:
            Stopped: a stop was asked for.
        """
        whole = self._in_one_piece(model)
        splits = self.built.interval_splits(self.config)

        def score() -> dict[str, dict[str, float]]:
            return {
                split: self.score(whole, split, step=step, oracle=False).score.metrics
                for split in splits
            }

        return score() if self._together else self.agreement.on_first(score)

    def at_the_end(
        self,
        model: Any,
        weights: dict[str, torch.Tensor] | None,
        *,
        step: int,
        write: Callable[[list[Evaluation]], None],
    ) -> None:
        """Score every split at every depth, and let rank 0 ``write`` the evaluations.

        Args:
            model: as it was trained.
            weights: those to score in place of the last ones; None scores the last.
            step: last step.
            write: gets the evaluations, split by split, the run's own depth first.

        Raises:
            Stopped: a stop was asked for.
        """
        whole = self._in_one_piece(model)

        def score() -> list[Evaluation]:
            if weights is not None:
                whole.load_state_dict(weights)
            return [
                evaluation
                for split in self.built.final_splits(self.config)
                for evaluation in self._at_every_depth(whole, split, step)
            ]

        if self._together:
            evaluations = score()
            self.agreement.on_first(lambda: write(evaluations))
        else:
            self.agreement.on_first(lambda: write(score()))

    def _at_every_depth(self, model: Any, split: str, step: int) -> list[Evaluation]:
        """Return a split scored at the run's own depth and at the further ones.

        A curve that is scored on a part of the rows has the own depth on that part too.
        """
        own, *further = self.built.depths(self.config)
        is_curve = self.config.evaluate.repeats == "auto"
        found = [self.score(model, split, step=step, repeats=own)]
        found += [
            self.score(model, split, step=step, repeats=depth, of_curve=is_curve)
            for depth in further
        ]
        if found[-1].score.of_curve:
            found.append(self.score(model, split, step=step, repeats=own, of_curve=True))
        return found

    def score(
        self,
        model: Any,
        split: str,
        *,
        step: int,
        repeats: int | list[int] | None = None,
        oracle: bool = True,
        of_curve: bool = False,
    ) -> Evaluation:
        """Return a split scored with the settings of the run, or as a curve over depth is.

        Raises:
            Stopped: a stop was asked for.
        """
        agreement = self.agreement

        def on_batch(done: int, total: int) -> None:
            stopped = agreement.stop_requested() if self._together else agreement.is_asked
            if stopped:
                raise Stopped(f"stopped while scoring {split} at step {step}")
            steps = self.config.train.steps
            self.journal.progress(
                ScoringProgress(split=split, step=step, steps=steps, rows=done, of_rows=total)
            )

        with self.journal.clock.scoring():
            scorer = self._scorer(
                model=model,
                built=self.built,
                config=self.config.evaluate,
                device=self.device,
                precision=self.config.train.precision,
                on_batch=on_batch,
                world=agreement.world if self._together else World(),
            )
            score = functools.partial(
                scorer.score,
                split,
                repeats=repeats,
                oracle=oracle and not of_curve,
                of_curve=of_curve,
            )
            if self.built.model_config.halting.kind == "none":
                return score()
            evaluation = self._count_repeats(model, score)
            if oracle and evaluation.score.is_default_depth:
                tables = repeats_by_difficulty(scorer, split)
                evaluation.score.tables.update(tables)
            return evaluation

    def _count_repeats(self, model: Any, score: Callable[[], Evaluation]) -> Evaluation:
        """Score a model whose tokens halt, with the repeats that they take as a metric."""
        from runners.scoring.exits import exits

        with exits(model, None) as used:
            evaluation = score()
        if self._together:
            used.share(self.agreement.world)
        metrics = evaluation.score.metrics | used.metrics(self.built)
        return dataclasses.replace(
            evaluation, score=dataclasses.replace(evaluation.score, metrics=metrics)
        )

    def _in_one_piece(self, model: Any) -> Any:
        """Return the model, or a whole copy of one that lies in pieces on the ranks.

        Every rank has to call it; None on a rank that does not score.
        """
        if not parallel.is_sharded(model):
            return model
        keep = self._together or self.agreement.world.is_first
        return parallel.whole_copy(model, self.device, keep=keep)


def repeats_by_difficulty(scorer: SplitScorer, split: str) -> dict[str, Table]:
    """Return the mean repeats that tokens take in a split's few rows of each difficulty.

    A table for each stack whose tokens halt; none of text, whose rows have no difficulty.
    """
    from runners.scoring.exits import exits

    tables: dict[str, Table] = {}
    for difficulty, rows in scorer.few_by_difficulty(split).items():
        with exits(scorer.model, None) as used:
            scorer.read(rows)
        for name, mean in used.metrics(scorer.built).items():
            if name.endswith("repeats_used"):
                cells = tables.setdefault(f"difficulty, {name.replace('_', ' ')}", {})
                cells[exact_text(difficulty)] = {name: mean, "rows": len(rows)}
    return tables
