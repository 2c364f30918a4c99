"""Scores of a language model on zero-shot benchmarks.

What is asked and how it is scored is in ``tasks.zero_shot``, log-likelihoods are those of
``runners.scoring.likelihoods``. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from moeut.recurrence.exit_rules import ExitRule
from moeut.token_pass import round_weights
from runners.reporting.zero_shot import Report
from runners.scoring.exits import exits
from runners.scoring.language_model import LanguageModel, load_language_model
from runners.scoring.likelihoods import BATCH_SIZE, encode, is_truncated, score_requests
from tasks.base.console import PlainConsole, make_progress
from tasks.zero_shot import ZERO_SHOT, Benchmark, Question, Result, get, score

ALL = "all"
"""Name that stands for every benchmark."""


def evaluate_path(
    path: Path,
    names: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    repeats: Iterable[int] = (),
    tokenizer: Path | None = None,
    exit_rule: ExitRule | None = None,
    weights: str = "float32",
    check: Callable[[], None] = lambda: None,
) -> list[Report]:
    """Score the language model of a run, a checkpoint or a ``.ckpt`` on benchmarks.

    Args:
        path: see ``runners.scoring.language_model``.
        names: of benchmarks; ``all`` stands for every one.
        limit: most questions of each file.
        batch_size: continuations of a batch.
        repeats: depths; none: the model's own.
        tokenizer: see ``runners.scoring.language_model``.
        exit_rule: when tokens leave early; None: as the model itself says.
        weights: what they are rounded to, see ``moeut.token_pass.round_weights``.
        check: called before each batch; may raise to stop.

    Raises:
        ValueError: an unknown benchmark, a number out of range, data that is missing or damaged, no
            language model at ``path``, a depth that it cannot take.
    """
    for option, number in (("--limit", limit), ("--batch-size", batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"{option} {number}: must be at least 1")
    # Before the model is loaded, which may take long: missing data is refused at once.
    names = [one for name in names for one in (ZERO_SHOT if name == ALL else [name])]
    asked = {name: (get(name), get(name).read(limit)) for name in dict.fromkeys(names)}
    language = load_language_model(path, tokenizer=tokenizer)
    round_weights(language.model, weights)
    reports = []
    depths: list[int | None] = [*repeats]
    for depth in depths or [None]:
        began = time.monotonic()
        results = []
        with exits(language.model, exit_rule) as used:
            for benchmark, questions in asked.values():
                with _Bar(benchmark.title, check) as on_batch:
                    results.append(
                        evaluate_questions(
                            language,
                            benchmark,
                            questions,
                            batch_size=batch_size,
                            num_repeats=depth,
                            on_batch=on_batch,
                        )
                    )
        reports.append(
            Report(
                model=language.name,
                num_repeats=depth,
                limit=limit,
                results=results,
                seconds=time.monotonic() - began,
                context_length=language.context_length,
                repeats_used=used.means().get("decoder"),
            )
        )
    return reports


def evaluate_questions(
    language: LanguageModel,
    benchmark: Benchmark,
    questions: Sequence[Question],
    *,
    batch_size: int = BATCH_SIZE,
    num_repeats: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Return the scores of questions of a benchmark.

    Args:
        language: the model.
        benchmark: how its questions are scored.
        questions: those asked.
        batch_size: continuations of a batch.
        num_repeats: depth; None: the model's own.
        on_batch: called before each batch with the continuations done and their number.

    Raises:
        ValueError: no questions, or a continuation without tokens.
    """
    requests = [
        [encode(language.tokenizer, question.context, text) for text in question.continuations]
        for question in questions
    ]
    answers = score_requests(
        language, requests, batch_size=batch_size, num_repeats=num_repeats, on_batch=on_batch
    )
    truncated = sum(
        is_truncated(request, language.context_length) for row in requests for request in row
    )
    return score(benchmark, questions, answers, truncated)


class _Bar:
    """A bar on the standard error if that is a terminal."""

    def __init__(self, title: str, check: Callable[[], None]) -> None:
        self.title, self.check = title, check
        self.bar = make_progress(PlainConsole(stderr=True), MofNCompleteColumn, TimeRemainingColumn)

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.__enter__()
        row = self.bar.add_task(self.title, total=None)

        def on_batch(done: int, total: int) -> None:
            self.check()
            self.bar.update(row, completed=done, total=total)

        return on_batch

    def __exit__(self, *exception: Any) -> None:
        self.bar.__exit__(*exception)
