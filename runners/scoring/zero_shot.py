"""Zero-shot benchmarks of a language model: ``python -m runners.evaluate PATH --task blimp``.

Scores and their formats are those of ``tasks.zero_shot``, log-likelihoods those of
``runners.scoring.likelihoods``. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runners.process import signals
from runners.process.signals import Stopped
from runners.process.terminal import make_console
from runners.reporting.tables import MISSING, Table, to_latex, to_markdown, to_rich
from runners.scoring.language_model import LanguageModel, load_language_model
from runners.scoring.likelihoods import BATCH_SIZE, encode, is_truncated, score_requests
from tasks.zero_shot import ZERO_SHOT, Benchmark, Question, Result, Score, get, score
from tasks.zero_shot.scoring import METRICS


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


@dataclass(frozen=True)
class Report:
    """Results of one model at one depth."""

    model: str
    num_repeats: int | None
    """None: the model's own depth."""
    limit: int | None
    results: list[Result]
    seconds: float
    context_length: int
    """Of the model: what is longer is cut."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "model": self.model,
            "num_repeats": self.num_repeats,
            "limit": self.limit,
            "context_length": self.context_length,
            "seconds": self.seconds,
            "results": [result.to_dict() for result in self.results],
        }

    def tables(self) -> list[Table]:
        """Return the table of all benchmarks, and one for each grouping."""
        parts = [
            _group_table(result, grouping)
            for result in self.results
            for grouping in get(result.benchmark).groupings
            if len(result.groups[grouping]) > 1
        ]
        return [self._overview(), *parts]

    def _overview(self) -> Table:
        rows: list[list[str]] = []
        bold: set[tuple[int, int]] = set()
        for result in self.results:
            for metric, one in result.metrics.items():
                if metric == result.headline:
                    bold.add((len(rows), 2))
                title = get(result.benchmark).title
                chance = result.chance.get(metric)
                shown = MISSING if chance is None else f"{chance:.4f}"
                rows.append([title, metric, *_cells(metric, one), shown, f"{one.questions:,}"])
        notes = ["bold: what the MoEUT paper reports; ± is the standard error"]
        notes += [
            f"{get(result.benchmark).title}: each {result.averaged_over} counts the same"
            for result in self.results
            if result.averaged_over is not None
        ]
        notes += [
            f"{get(result.benchmark).title}: {result.truncated:,} continuations had their context "
            f"cut, since the model was trained on {self.context_length:,} tokens at once"
            for result in self.results
            if result.truncated
        ]
        if self.limit is not None:
            notes.append(f"only the first {self.limit} questions of each file")
        depth = "" if self.num_repeats is None else f", {self.num_repeats} repeats"
        return Table(
            name="zero_shot",
            title=f"Zero-shot, {self.model}{depth}",
            columns=["benchmark", "metric", "score", "±", "chance", "questions"],
            rows=rows,
            bold=frozenset(bold),
            notes=notes,
        )


def _group_table(result: Result, grouping: str) -> Table:
    title = get(result.benchmark).title
    metrics = list(result.metrics)
    rows = []
    for group, scores in result.groups[grouping].items():
        numbers = [cell for metric in metrics for cell in _cells(metric, scores[metric])]
        questions = next(iter(scores.values())).questions
        rows.append([group.replace("_", " "), *numbers, f"{questions:,}"])
    return Table(
        name=f"{result.benchmark}_{grouping}",
        title=f"{title} by {grouping}",
        columns=[grouping, *(name for metric in metrics for name in (metric, "±")), "questions"],
        rows=rows,
    )


def _cells(metric: str, one: Score) -> tuple[str, str]:
    digits = 4 if METRICS[metric] == "share" else 2
    error = one.standard_error
    return f"{one.value:.{digits}f}", MISSING if error is None else f"{error:.{digits}f}"


# --- the command ------------------------------------------------------------------------

FORMATS: dict[str, Callable[[Table], Any]] = {
    "table": to_rich,
    "markdown": to_markdown,
    "latex": to_latex,
}
"""How ``--format`` shows a table; ``json`` shows the results as they are."""

ALL = "all"
"""What ``--task`` calls all the benchmarks together."""


def evaluate_path(
    path: Path,
    names: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    repeats: Iterable[int] = (),
    tokenizer: Path | None = None,
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
        check: called before each batch; may raise to stop.

    Raises:
        ValueError: an unknown benchmark, a number out of range, data that is missing or damaged, no
            language model at ``path``, a depth that it cannot take.
    """
    for option, number in (("--limit", limit), ("--batch-size", batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"{option} {number}: must be at least 1")
    # What is missing is said before a large model is loaded.
    names = [one for name in names for one in (ZERO_SHOT if name == ALL else [name])]
    asked = {name: (get(name), get(name).read(limit)) for name in dict.fromkeys(names)}
    language = load_language_model(path, tokenizer=tokenizer)
    reports = []
    depths: list[int | None] = [*repeats]
    for depth in depths or [None]:
        began = time.monotonic()
        results = []
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
        seconds = time.monotonic() - began
        reports.append(
            Report(language.name, depth, limit, results, seconds, language.context_length)
        )
    return reports


class _Bar:
    """A bar on the standard error if that is a terminal."""

    def __init__(self, title: str, check: Callable[[], None]) -> None:
        self.title, self.check = title, check
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.__enter__()
        row = self.bar.add_task(self.title, total=None)

        def on_batch(done: int, total: int) -> None:
            self.check()
            self.bar.update(row, completed=done, total=total)

        return on_batch

    def __exit__(self, *exception: Any) -> None:
        self.bar.__exit__(*exception)


def show(reports: Sequence[Report], style: str, console: Console) -> None:
    """Print reports as ``json`` or in one of ``FORMATS``."""
    if style == "json":
        sys.stdout.write(json.dumps([report.to_dict() for report in reports], indent=1) + "\n")
        return
    for report in reports:
        for table in report.tables():
            shown = FORMATS[style](table)
            if isinstance(shown, str):
                sys.stdout.write(shown + "\n")
                continue
            console.print(shown)
            for note in table.notes:
                console.print(note, style="dim", highlight=False)
            console.print()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of zero-shot benchmarks to those of ``runners.evaluate``."""
    group = parser.add_argument_group(
        "zero-shot benchmarks of a language model",
        "from local files (python -m tasks.fetch blimp brings them); RUN may also be\n"
        "a checkpoints/step_… or a .ckpt file, for no training data is read",
    )
    group.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME",
        help=f"{', '.join(ZERO_SHOT)}, or {ALL}; may be repeated",
    )
    group.add_argument(
        "--limit", type=int, metavar="N", help="only the first N questions of each file"
    )
    group.add_argument(
        "--batch-size", type=int, metavar="N", help=f"continuations read at once ({BATCH_SIZE})"
    )
    group.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="where none lies with the weights"
    )
    group.add_argument("--format", choices=FORMATS, help="how tables are printed (table)")


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for options that do not go together."""
    of_splits = ("split", "rows_per_category", "all_rows")
    of_tasks = ("limit", "batch_size", "tokenizer", "format")
    for name in of_splits if options.task else of_tasks:
        if getattr(options, name) not in (None, False, []):
            other = "only without --task" if options.task else "only with --task"
            raise ValueError(f"--{name.replace('_', '-')}: {other}")


def run(options: argparse.Namespace, stop: signals.Stop) -> int:
    """Score as the command line says, print, and return the exit status.

    Raises:
        ValueError: see ``evaluate_path``.
        Stopped: a stop was asked for.
    """

    def check() -> None:
        if stop.requested:
            raise Stopped("stopped while scoring; nothing was written")

    reports = evaluate_path(
        options.run,
        options.task,
        limit=options.limit,
        batch_size=BATCH_SIZE if options.batch_size is None else options.batch_size,
        repeats=options.repeats,
        tokenizer=options.tokenizer,
        check=check,
    )
    show(reports, "json" if options.json else options.format or "table", make_console())
    return signals.DONE
