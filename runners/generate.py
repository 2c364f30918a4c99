"""Continue text with a trained language model: ``python -m runners.generate RUN --prompt TEXT``.

RUN is a run's directory, one of its checkpoints, or a ``.ckpt`` file of the paper's training code.
Nothing is written. Text goes to standard output as it comes, speed to standard error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moeut.sampling import check_settings, generate
from runners.config.schema import ConfigError
from runners.process import signals
from runners.scoring.language_model import LanguageModel, add_model_argument, load_language_model
from runners.training.batches import padded_batch
from tasks.base.command_line import Parser


@dataclass(frozen=True)
class Settings:
    """How text is continued; ``moeut.sampling.generate`` says what each means."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    repeats: int | None
    use_cache: bool


@dataclass(frozen=True)
class Continuation:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    num_tokens: int
    finished: bool
    """Whether the model ended the document by itself."""


class Speed:
    """Tokens written and the seconds that took, of all batches."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0
        self.later_tokens, self.later_seconds = 0, 0.0
        """Of what follows the first step, in which prompts are read and kernels loaded."""
        self.longest = 0
        """Tokens of the longest text, its prompt and what stands before that included."""

    def add(self, lengths: Sequence[int], prompt_lengths: Sequence[int], ends: list[float]) -> None:
        """Count a batch: tokens of each row; when it began, and when each step was done."""
        self.tokens += sum(lengths)
        self.seconds += ends[-1] - ends[0]
        self.later_tokens += sum(max(0, length - 1) for length in lengths)
        self.later_seconds += ends[-1] - ends[1]
        texts = (sum(pair) for pair in zip(prompt_lengths, lengths, strict=True))
        self.longest = max(self.longest, *texts)

    def __str__(self) -> str:
        shown = f"{self.tokens} tokens in {self.seconds:.2f} s"
        if not self.later_tokens:
            return shown
        rate = self.later_tokens / self.later_seconds
        return f"{shown}; {rate:,.1f} tokens/s after the first of each text"


class TextStream:
    """Turns ids that come one by one into text, holding back characters that are not whole yet.

    Args:
        loaded: its tokenizer decodes.
        prompt: ids before the first. They are decoded with the others and left out of the text:
            SentencePiece drops a space at the beginning of what it decodes.
    """

    def __init__(self, loaded: LanguageModel, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = loaded.tokenizer
        self._ids = list(prompt)
        self._shown = len(self._tokenizer.decode(self._ids))

    def add(self, token: int) -> str:
        """Return the text that the token completes."""
        self._ids.append(token)
        # Decoding all of it each time is what keeps spaces between pieces right.
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        new, self._shown = whole[self._shown :], max(self._shown, len(whole))
        return new

    def rest(self) -> str:
        """Return what was held back."""
        return self._tokenizer.decode(self._ids)[self._shown :]


def continue_prompts(
    loaded: LanguageModel,
    prompts: Sequence[str],
    settings: Settings,
    *,
    generator: torch.Generator | None = None,
    stream: bool = False,
    speed: Speed | None = None,
) -> list[Continuation]:
    """Continue prompts in one batch and return them in their order.

    Args:
        loaded: model and tokenizer; a prompt is read after what documents began after in training.
        prompts: texts; an empty one needs a boundary token or separator to begin from.
        settings: sampling, depth and length.
        generator: what is drawn from, on the model's device.
        stream: print the one prompt's text as it comes.
        speed: adds up tokens and seconds.

    Raises:
        ValueError: a setting out of range, a depth that the model cannot take, or nothing to
            begin from.
    """
    ids = [[*loaded.prefix, *loaded.tokenizer.encode(prompt)] for prompt in prompts]
    for prompt, row in zip(prompts, ids, strict=True):
        if not row:
            raise ConfigError(f"prompt {prompt!r}: has no tokens, and the model no boundary token")
    tokens, mask = padded_batch(ids, 0, loaded.device)
    text = TextStream(loaded, ids[0])
    ends = [time.monotonic()]

    def on_token(chosen: torch.Tensor, running: torch.Tensor) -> None:
        if stream and bool(running[0]):
            print(text.add(int(chosen[0])), end="", flush=True)
        ends.append(time.monotonic())

    with loaded.autocast():
        result = generate(
            loaded.model,
            tokens,
            mask,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop=loaded.tokenizer.boundary_id,
            num_ids=loaded.tokenizer.vocabulary_size,
            generator=generator,
            num_repeats=settings.repeats,
            use_cache=settings.use_cache,
            on_token=on_token,
        )
    if stream:
        print(text.rest(), flush=True)
    if speed is not None:
        speed.add(result.lengths.tolist(), [len(row) for row in ids], ends)
    return [
        Continuation(prompt, _text_after(loaded, before, row[:length]), length, finished)
        for prompt, before, row, length, finished in zip(
            prompts,
            ids,
            result.tokens.tolist(),
            result.lengths.tolist(),
            result.finished.tolist(),
            strict=True,
        )
    ]


def _text_after(loaded: LanguageModel, prompt: list[int], tokens: list[int]) -> str:
    decode = loaded.tokenizer.decode
    return decode([*prompt, *tokens])[len(decode(prompt)) :]


def read_prompts(path: Path) -> list[str]:
    r"""Return the prompts of a file: its lines, or of a ``.jsonl`` file the field ``prompt``.

    Raises:
        ValueError: no such file, not UTF-8, no prompts, or a line without the field.
    """
    if not path.is_file():
        raise ConfigError(f"--prompts {path}: no such file")
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: holds no prompt")
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'{path}:{number}: expected {{"prompt": text}}')
        prompts.append(prompt)
    return prompts


def _typed() -> Iterator[str]:
    """Yield the lines that a user types, or that come through a pipe, until there are no more."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield _unescape(line.rstrip("\n"))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m runners.generate",
        description="Continue text with a trained language model. What it writes goes to the\n"
        "standard output as it comes, the speed to the standard error; nothing is saved.",
        epilog="""examples:
  python -m runners.generate runs/lm_44m/moeut-1a2b3c4d/seed0 --prompt 'def main(' --greedy
  python -m runners.generate c4.ckpt --prompts prompts.txt --top-p 0.9 --json > texts.jsonl
  python -m runners.generate RUN                          type prompts, one a line; Ctrl-D ends
  python -m runners.generate RUN --prompt 'x =' --repeats 16           the same weights, deeper

A text ends after --max-tokens, or where the model ends the document by itself.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser)
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
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--repeats", type=int, metavar="N", help="depth, where layers are shared: N times the group"
    )
    group.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="where none lies with the weights"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="read the whole text again for every token, instead of keeping keys and values",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each prompt")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    speed = Speed()
    try:
        settings = Settings(
            max_tokens=options.max_tokens,
            temperature=0.0 if options.greedy else options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repeats=options.repeats,
            use_cache=not options.no_cache,
        )
        check_settings(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
        )
        if options.batch_size < 1:
            raise ConfigError(f"--batch-size {options.batch_size}: must be at least 1")
        if not 0 <= options.seed < 2**63:
            raise ConfigError(f"--seed {options.seed}: must be at least 0 and below 2^63")
        prompts = None if options.prompts is None else read_prompts(options.prompts)
        loaded = load_language_model(
            options.model, tokenizer=options.tokenizer, device=options.device
        )
        # A depth that the model cannot take is said before the first prompt is printed.
        loaded.model.new_cache(settings.repeats)
        # One for all batches: the same prompt in two of them is continued in two ways.
        generator = torch.Generator(loaded.device).manual_seed(options.seed)
        if prompts is not None:
            for first in range(0, len(prompts), options.batch_size):
                batch = prompts[first : first + options.batch_size]
                done = continue_prompts(loaded, batch, settings, generator=generator, speed=speed)
                _print(done, options.json)
        else:
            single = None if options.prompt is None else [_unescape(options.prompt)]
            for prompt in single or _typed():
                if not options.json:
                    print(prompt, end="", flush=True)
                done = continue_prompts(
                    loaded,
                    [prompt],
                    settings,
                    generator=generator,
                    stream=not options.json,
                    speed=speed,
                )
                if options.json:
                    _print(done, as_json=True)
    except BrokenPipeError:  # the reader of the text has gone
        raise
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return signals.BAD_INPUT
    print(speed, file=sys.stderr)
    if speed.longest > loaded.context_length + 1:  # the last token is not read
        print(
            f"the longest text has {speed.longest} tokens; the model was trained on windows of "
            f"{loaded.context_length} and may lose the thread after them",
            file=sys.stderr,
        )
    return signals.DONE


def _print(continuations: Sequence[Continuation], as_json: bool) -> None:
    for one in continuations:
        if as_json:
            print(json.dumps(vars(one), ensure_ascii=False), flush=True)
        else:
            print(f"{one.prompt}{one.text}\n", flush=True)


def _unescape(text: str) -> str:
    r"""Return a prompt of one line in which ``\n``, ``\t`` and ``\\`` are made characters.

    >>> _unescape(r"a\nb c:\\new \d")
    'a\nb c:\\new \\d'
    """
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], text)


if __name__ == "__main__":
    signals.exit_with(main)
