"""Score a finished run on any split and depth: ``python -m runners.evaluate RUN [--split gen]``.

``--task blimp`` scores a language model, of a run or a ``.ckpt`` file, on zero-shot benchmarks.

The weights are those that the run's ``select`` names. Nothing is written.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from moeut.token_pass import round_weights
from runners.process import signals
from runners.process.signals import Stopped
from runners.reporting import zero_shot as zero_shot_report
from runners.reporting.run_result import Score, to_plain
from runners.scoring import zero_shot
from runners.scoring.exits import add_exit_argument
from runners.scoring.finished_run import choose_rows, load_finished_run, score_finished_run
from runners.scoring.language_model import add_tokenizer_argument
from runners.scoring.likelihoods import BATCH_SIZE
from runners.scoring.rounding import add_weights_argument
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with
from tasks.base.console import WholeTable, make_console
from tasks.zero_shot import ZERO_SHOT

EXAMPLES = """examples:
  python -m runners.evaluate runs/cogs/moeut-1a2b3c4d/seed0 --split gen --repeats 4,8,16
  python -m runners.evaluate runs/cogs/moeut-1a2b3c4d/seed0 --repeats 16 --exit kl=1e-3
  python -m runners.evaluate runs/lm_44m/moeut-1a2b3c4d/seed0 --task blimp --task piqa
  python -m runners.evaluate c4_moeut.ckpt --task all --format markdown

A .ckpt file is one of the paper's training code; its SentencePiece file *.model lies beside it."""


@bad_input_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    _check_group(options)
    evaluate = _evaluate_benchmarks if options.task else _evaluate_splits
    with signals.Stop(announce=True) as stop:

        def check() -> None:
            if stop.requested:
                raise Stopped("stopped while scoring; nothing was written")

        try:
            evaluate(options, check)
        except Stopped as error:
            print(error, file=sys.stderr)
            return stop.exit_status
    return DONE


def _evaluate_splits(options: argparse.Namespace, check: Callable[[], None]) -> None:
    run = load_finished_run(options.run)
    round_weights(run.model, options.weights)
    settings = choose_rows(
        run.config.evaluate,
        rows_per_category=options.rows_per_category,
        all_rows=options.all_rows,
    )
    scores = score_finished_run(
        run,
        splits=options.split,
        repeats=options.repeats,
        settings=settings,
        exit_rule=options.exit,
        check=check,
    )
    if options.json:
        print(json.dumps(to_plain(scores), indent=1))
    else:
        print_table(scores, make_console())


def _evaluate_benchmarks(options: argparse.Namespace, check: Callable[[], None]) -> None:
    reports = zero_shot.evaluate_path(
        options.run,
        options.task,
        limit=options.limit,
        batch_size=BATCH_SIZE if options.batch_size is None else options.batch_size,
        repeats=options.repeats,
        tokenizer=options.tokenizer,
        exit_rule=options.exit,
        weights=options.weights,
        check=check,
    )
    style = "json" if options.json else options.format or "table"
    zero_shot_report.show(reports, style, make_console())


def print_table(scores: Sequence[Score], console: Console) -> None:
    """Print scores, one row for each split and depth."""
    names = list(dict.fromkeys(name for score in scores for name in score.metrics))
    table = WholeTable(box=None, pad_edge=False)
    for column in ("split", "repeats", "rows", *names, "ceiling", "chance", "majority"):
        # Spaces, at which a narrow terminal breaks the line instead of cutting the word.
        title = column.replace("_", " ")
        table.add_column(title, justify="left" if column == "split" else "right")
    for score in scores:
        rows = f"{score.rows} of {score.rows_available}"
        numbers = [*(score.metrics.get(name) for name in names), score.ceiling]
        numbers += [score.chance, score.majority]
        table.add_row(
            score.split,
            score.shown_repeats,
            str(score.rows) if score.rows == score.rows_available else rows,
            *("–" if number is None else f"{number:.4f}" for number in numbers),
        )
    console.print(table)


# --- the command line -------------------------------------------------------------------

OF_SPLITS = ("split", "rows_per_category", "all_rows")
OF_BENCHMARKS = ("limit", "batch_size", "tokenizer", "format")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m runners.evaluate",
        description="Score a finished run on any split and at any depth, or a language model\n"
        "on zero-shot benchmarks. Scores are printed; nothing is written.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="directory of a run: …/<variant>-<hash>/seed<k>"
    )
    parser.add_argument(
        "--repeats",
        type=_numbers,
        default=[],
        metavar="N,N,…",
        help="depths of a model that shares layers, as 4,8,16; its own where left out",
    )
    add_exit_argument(parser)
    add_weights_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with every table")
    _add_split_options(parser)
    _add_benchmark_options(parser)
    return parser


def _add_split_options(parser: Parser) -> None:
    group = parser.add_argument_group("splits of the run's own task")
    group.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="which, may be repeated; where left out, those that the run scores at its end",
    )
    group.add_argument(
        "--rows-per-category",
        type=int,
        metavar="N",
        help="score only N rows of each category, instead of the run's own setting",
    )
    group.add_argument("--all-rows", action="store_true", help="score every row")


def _add_benchmark_options(parser: Parser) -> None:
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
        help=f"{', '.join(ZERO_SHOT)}, or {zero_shot.ALL}; may be repeated",
    )
    group.add_argument(
        "--limit", type=int, metavar="N", help="only the first N questions of each file"
    )
    group.add_argument(
        "--batch-size", type=int, metavar="N", help=f"continuations read at once ({BATCH_SIZE})"
    )
    add_tokenizer_argument(group)
    group.add_argument(
        "--format", choices=zero_shot_report.FORMATS, help="how tables are printed (table)"
    )


def _check_group(options: argparse.Namespace) -> None:
    """Raise ValueError for options that do not go together."""
    for name in OF_SPLITS if options.task else OF_BENCHMARKS:
        if getattr(options, name) not in (None, False, []):
            other = "only without --task" if options.task else "only with --task"
            raise ValueError(f"--{name.replace('_', '-')}: {other}")


def _numbers(text: str) -> list[int]:
    """Read ``4,8,16``."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected depths of at least 1, as 4,8,16")
    return numbers


if __name__ == "__main__":
    exit_with(main)
