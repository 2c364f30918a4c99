"""Continue text with a trained language model: ``python -m runners.generate RUN --prompt TEXT``.

RUN is a run's directory, one of its checkpoints, or a ``.ckpt`` file of the paper's training code.
Nothing is written. Text goes to standard output as it comes, speed to standard error.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from moeut.token_pass import round_weights
from runners.config.schema import ConfigError
from runners.scoring.continuation import (
    Continuation,
    Settings,
    Speed,
    continue_prompts,
    prompt_ids,
)
from runners.scoring.exits import add_exit_argument, exits
from runners.scoring.language_model import (
    LanguageModel,
    add_model_argument,
    add_tokenizer_argument,
    load_language_model,
)
from runners.scoring.prompts import given_prompt, read_prompts, typed_prompts
from runners.scoring.room import check_room, shortage
from runners.scoring.rounding import add_weights_argument
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with

EXAMPLES = """examples:
  python -m runners.generate runs/lm_44m/moeut-1a2b3c4d/seed0 --prompt 'def main(' --greedy
  python -m runners.generate c4.ckpt --prompts prompts.txt --top-p 0.9 --json > texts.jsonl
  python -m runners.generate RUN                          type prompts, one a line; Ctrl-D ends
  python -m runners.generate RUN --prompt 'x =' --repeats 16           the same weights, deeper
  python -m runners.generate RUN --prompt 'x =' --weights bfloat16     on a CPU up to twice as fast

A text ends after --max-tokens, or where the model ends the document by itself."""


@bad_input_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    settings = _settings(options)
    prompts = None if options.prompts is None else read_prompts(options.prompts)
    loaded = load_language_model(options.model, tokenizer=options.tokenizer, device=options.device)
    round_weights(loaded.model, options.weights)
    # A depth that the model cannot take is said before the first prompt is printed.
    loaded.model.new_cache(settings.repeats)
    with exits(loaded.model, options.exit) as used:
        speed = _generate(options, loaded, settings, prompts)
    print(speed, file=sys.stderr)
    for mean in used.means().values():
        print(f"repeats used: {mean:.2f} for a token, in the mean", file=sys.stderr)
    if speed.longest > loaded.context_length + 1:  # the last token is not read
        print(
            f"the longest text has {speed.longest} tokens; the model was trained on windows of "
            f"{loaded.context_length} and may lose the thread after them",
            file=sys.stderr,
        )
    return DONE


def _generate(
    options: argparse.Namespace,
    loaded: LanguageModel,
    settings: Settings,
    prompts: Sequence[str] | None,
) -> Speed:
    """Continue the prompts of a file, or the one given, or those that are typed."""
    # One for all batches: the same prompt in two of them is continued in two ways.
    generator = torch.Generator(loaded.device).manual_seed(options.seed)
    speed = Speed()
    if prompts is None:
        given = typed_prompts() if options.prompt is None else [given_prompt(options.prompt)]
        _continue_typed(loaded, given, settings, generator, speed, as_json=options.json)
    else:
        _check_room(loaded, prompts, settings)  # of all, before the first is computed
        for first in range(0, len(prompts), options.batch_size):
            batch = prompts[first : first + options.batch_size]
            done = continue_prompts(loaded, batch, settings, generator=generator, speed=speed)
            _print(done, options.json)
    return speed


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings of a command line, checked.

    Raises:
        ValueError: a number out of range.
    """
    settings = Settings(
        max_tokens=options.max_tokens,
        temperature=0.0 if options.greedy else options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repeats=options.repeats,
        use_cache=not options.no_cache,
    )
    settings.check()
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size {options.batch_size}: must be at least 1")
    if not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed {options.seed}: must be at least 0 and below 2^63")
    return settings


def _check_room(loaded: LanguageModel, prompts: Sequence[str], settings: Settings) -> None:
    """Refuse prompts that nothing can follow, and say which get less than was asked for.

    Raises:
        ConfigError: see ``check_room``.
    """
    rows = prompt_ids(loaded, prompts)
    check_room(loaded, rows, prompts)
    if (notice := shortage(loaded, rows, settings.max_tokens)) is not None:
        print(notice, file=sys.stderr)


def _continue_typed(
    loaded: LanguageModel,
    prompts: Iterable[str],
    settings: Settings,
    generator: torch.Generator,
    speed: Speed,
    *,
    as_json: bool,
) -> None:
    """Continue prompts one by one, each as soon as it is there."""
    for prompt in prompts:
        _check_room(loaded, [prompt], settings)
        if not as_json:
            print(prompt, end="", flush=True)
        done = continue_prompts(
            loaded, [prompt], settings, generator=generator, stream=not as_json, speed=speed
        )
        if as_json:
            _print(done, as_json=True)


def _print(continuations: Sequence[Continuation], as_json: bool) -> None:
    for one in continuations:
        if as_json:
            print(json.dumps(vars(one), ensure_ascii=False), flush=True)
        else:
            print(f"{one.prompt}{one.text}\n", flush=True)


# --- the command line -------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog="python -m runners.generate",
        description="Continue text with a trained language model. What it writes goes to the\n"
        "standard output as it comes, the speed to the standard error; nothing is saved.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser)
    _add_prompt_options(parser)
    _add_sampling_options(parser)
    _add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each prompt")
    return parser


def _add_prompt_options(parser: Parser) -> None:
    group = parser.add_argument_group("prompts (typed, or from a pipe, where neither is given)")
    given = group.add_mutually_exclusive_group()
    given.add_argument(
        "--prompt", metavar="TEXT", help=r"text to continue; \n is a line end, \t a tab"
    )
    given.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='a prompt a line, or .jsonl with {"prompt": text} a line',
    )
    group.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="prompts of a file at once (16)"
    )


def _add_sampling_options(parser: Parser) -> None:
    group = parser.add_argument_group("how tokens are chosen")
    group.add_argument("--max-tokens", type=int, default=128, metavar="N", help="at most (128)")
    group.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="below 1 bolder, above 1 more even; 0 always takes the most likely token (1)",
    )
    group.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    group.add_argument(
        "--top-k", type=int, metavar="K", help="draw only from the K most likely tokens"
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw only from the fewest most likely tokens that have probability P together",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another gives other draws (0)"
    )


def _add_model_options(parser: Parser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--repeats", type=int, metavar="N", help="depth, where layers are shared: N times the group"
    )
    add_exit_argument(group)
    add_weights_argument(group)
    add_tokenizer_argument(group)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="read the whole text again for every token, instead of keeping keys and values",
    )


if __name__ == "__main__":
    exit_with(main)
