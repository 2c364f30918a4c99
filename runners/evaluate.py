"""A finished run on any split and depth: ``python -m runners.evaluate RUN [--split gen]``.

A language model, of a run or a ``.ckpt`` file, on zero-shot benchmarks too: ``--task blimp``.

The weights scored are those that the run's ``select`` names. A damaged checkpoint is refused: the
one before it is of another step. Nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from moeut.saving import check_fit
from runners.config.schema import ConfigError, RunConfig
from runners.process import environment, signals
from runners.process.checkpoint import Checkpoint, check_run, list_checkpoints, load_checkpoint
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stopped
from runners.process.terminal import make_console
from runners.reporting.run_result import Score, to_plain
from runners.scoring import zero_shot
from runners.scoring.splits import split_scorer
from runners.training.experiment import Built, build, build_model
from tasks.base.command_line import Parser
from tasks.base.options import nearest


def evaluate_run(
    directory: Path,
    *,
    splits: Sequence[str] = (),
    repeats: Sequence[int] = (),
    rows_per_category: int | None = None,
    all_rows: bool = False,
    stop: signals.Stop | None = None,
) -> list[Score]:
    """Score a finished run's selected weights and return the scores, split by split.

    Args:
        directory: of the run.
        splits: names; none: those that the run scores at its end.
        repeats: depths; none: the model's own.
        rows_per_category: instead of the run's own setting.
        all_rows: score every row, whatever the run's setting.
        stop: asked before every batch.

    Raises:
        ConfigError: no finished run, an unknown split, a depth that the model cannot take, or data
            that has changed since.
        Damaged: its last checkpoint is not what was written.
        Refused: its last checkpoint is another run's.
        Stopped: a stop was asked for.
    """
    if directory.is_file():
        raise ConfigError(
            f"{directory}: a file, which has no splits of its own; expected the directory of a "
            f"run, or --task with a zero-shot benchmark"
        )
    files = RunDirectory(directory)
    if files.status() != "done":
        hint = "; it is a sweep's: name a run" if (directory / "sweep.json").is_file() else ""
        raise ConfigError(f"{directory}: holds no finished run (no {files.result.name}){hint}")
    config = files.read_config()
    built = build(config)
    device = environment.choose_device(config.train)
    environment.prepare_process(config.train, device)
    model = build_model(built.model_config, device)
    checkpoints = list_checkpoints(files.checkpoints)
    if not checkpoints:
        raise ConfigError(f"{files.checkpoints}: holds no checkpoint")
    checkpoint = load_checkpoint(checkpoints[-1])
    check_run(checkpoint, files.read_record().hash)
    _check_data(checkpoint, built)
    weights = checkpoint.weights("model" if config.selection_split is None else "best")
    check_fit(model, weights, str(checkpoint.path))
    model.load_state_dict(weights)

    wanted = dataclasses.replace(config.evaluate, rows_per_category=rows_per_category)
    settings = wanted if all_rows or rows_per_category is not None else config.evaluate

    def on_batch(done: int, total: int) -> None:
        if stop is not None and stop.requested:
            raise Stopped("stopped while scoring; nothing was written")

    scorer = split_scorer(built.objective)(
        model=model,
        built=built,
        config=settings,
        device=device,
        precision=config.train.precision,
        on_batch=on_batch,
    )
    return [
        scorer.score(split, repeats=depth).score
        for split in _splits(built, config, splits)
        for depth in _depths(built, repeats)
    ]


def _check_data(checkpoint: Checkpoint, built: Built) -> None:
    """Refuse to score on other data than the run's, as when a file was changed since."""
    before, now = checkpoint.state["identity"]["data_hash"], built.task.data_hash()
    if before != now:
        raise ConfigError(
            f"{checkpoint.path}: was trained on data that is no longer what the run's config names "
            f"(data hash {before[:12]}…, now {now[:12]}…): its scores would be of something else"
        )


def _splits(built: Built, config: RunConfig, splits: Sequence[str]) -> list[str]:
    known = list(built.task.splits())
    for split in splits:
        if split not in known:
            raise ConfigError(
                f"--split {split}: expected one of {', '.join(known)}{nearest(split, known)}"
            )
    return list(splits) or built.final_splits(config)


def _depths(built: Built, repeats: Sequence[int]) -> list[int | list[int]]:
    own = built.default_repeats
    if not repeats:
        return [own]
    if not built.is_shared:
        raise ConfigError(
            f"--repeats {','.join(map(str, repeats))}: the layers of this model are not shared, so "
            f"its depth is fixed"
        )
    return [[number, number] if isinstance(own, list) else number for number in repeats]


def print_table(scores: Sequence[Score], console: Console) -> None:
    """Print scores, one row for each split and depth."""
    names = list(dict.fromkeys(name for score in scores for name in score.metrics))
    table = Table(box=None, pad_edge=False)
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


def _numbers(text: str) -> list[int]:
    """Read ``4,8,16``."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected depths of at least 1, as 4,8,16")
    return numbers


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = Parser(
        prog="python -m runners.evaluate",
        description="Score a finished run on any split and at any depth, or a language model\n"
        "on zero-shot benchmarks. Scores are printed; nothing is written.",
        epilog="""examples:
  python -m runners.evaluate runs/cogs/moeut-1a2b3c4d/seed0 --split gen --repeats 4,8,16
  python -m runners.evaluate runs/lm_44m/moeut-1a2b3c4d/seed0 --task blimp --task piqa
  python -m runners.evaluate c4_moeut.ckpt --task all --format markdown

A .ckpt file is one of the paper's training code; its SentencePiece file *.model lies beside it.""",
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
    parser.add_argument("--json", action="store_true", help="print JSON, with every table")
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
    zero_shot.add_options(parser)
    options = parser.parse_args(arguments)
    with signals.Stop(announce=True) as stop:
        try:
            zero_shot.check_options(options)
            if options.task:
                return zero_shot.run(options, stop)
            if options.rows_per_category is not None and options.rows_per_category < 1:
                raise ConfigError(
                    f"--rows-per-category {options.rows_per_category}: must be at least 1"
                )
            scores = evaluate_run(
                options.run,
                splits=options.split,
                repeats=options.repeats,
                rows_per_category=options.rows_per_category,
                all_rows=options.all_rows,
                stop=stop,
            )
        except BrokenPipeError:  # the reader of the tables has gone
            raise
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return signals.BAD_INPUT
        except Stopped as error:
            print(error, file=sys.stderr)
            return stop.exit_status
    if options.json:
        print(json.dumps(to_plain(scores), indent=1))
    else:
        print_table(scores, make_console())
    return signals.DONE


if __name__ == "__main__":
    signals.exit_with(main)
